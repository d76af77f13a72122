"""Write CRAFT, a detector of text, as an ONNX model: ``python -m models.export_craft [OUTPUT]``.

The weights are those of ``craft_mlt_25k``, fetched by ``models/fetch.py``. The graph is written node by node after the
paper (Baek et al., arXiv 1904.01941): a VGG-16 with batch normalization whose stages feed a decoder through skip
connections. Batch normalization is folded into the convolutions, as exporters do.

Input ``image``, float32 (batch, 3, height, width), both sizes multiples of 16, normalised as `MEAN` and `STD` say;
output ``scores``, float32 (batch, height / 2, width / 2, 2): how likely a pixel is the centre of a character, and how
likely it lies between two characters of one word.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.fetch import fetch_model, find_cache
from models.graph_writer import GraphWriter, fold_normalization, write_model
from models.torch_file import Tensors, read_torch_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue of images in the range 0 to 1, for the input's normalization."""

STRIDE = 16
"""Height and width of the input are multiples of it."""

EPSILON = 1e-5
"""Of the batch normalizations: the framework's default."""

TRUNK: Sequence[tuple[int, int | str]] = (
    *((1, 0), (1, 3), (1, "pool"), (1, 7), (1, 10), (1, "keep"), (2, "pool"), (2, 14), (2, 17), (2, "keep")),
    *((3, 20), (3, "pool"), (3, 24), (3, 27), (3, "keep"), (4, 30), (4, "pool"), (4, 34), (4, 37)),
)
"""The stage and the index of each convolution in the file, with poolings, and marks where a skip connection leaves."""

DECODER = ("upconv1", "upconv2", "upconv3", "upconv4")

HEAD = (0, 2, 4, 6, 8)


class _Detector(GraphWriter):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = {name.removeprefix("module."): values for name, values in tensors.items()}

    def relu(self, value: str) -> str:
        return self.node("Relu", [value], f"{value}/relu")

    def normalized(self, value: str, convolution: str, normalization: str) -> str:
        """A convolution with the batch normalization that follows it."""
        weight, bias = self.tensors[f"{convolution}.weight"], self.tensors[f"{convolution}.bias"]
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (self.tensors[f"{normalization}.{part}"] for part in parts)
        folded = fold_normalization(weight, bias, scale, shift, mean, variance, EPSILON)
        return self.convolution(value, *folded, convolution)

    def plain(self, value: str, name: str, **geometry: object) -> str:
        return self.convolution(value, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], name, **geometry)

    def trunk(self, value: str) -> list[str]:
        """The stages' outputs, the deepest last.

        The original's ReLU works in place, so that a stage that ends before its ReLU hands on what the next stage has
        made of it: rectified, but for the last one, behind which comes no ReLU.
        """
        skips = []
        for stage, part in TRUNK:
            if part == "keep":
                skips.append(value)
            elif part == "pool":
                value = self.node("MaxPool", [value], f"{value}/pool", kernel_shape=[2, 2], strides=[2, 2])
            else:
                name = f"basenet.slice{stage}"
                value = self.normalized(value, f"{name}.{part}", f"{name}.{int(part) + 1}")
                if part != 37:
                    value = self.relu(value)
        return [*skips, value]

    def bottom(self, value: str) -> str:
        """The last stage: dilated, at the size of the one before it."""
        pooled = self.node("MaxPool", [value], "basenet.slice5.0", kernel_shape=[3, 3], pads=[1] * 4)
        dilated = self.plain(pooled, "basenet.slice5.1", dilations=[6, 6], pads=[6] * 4)
        return self.plain(dilated, "basenet.slice5.2")

    def decoder(self, value: str, skips: Sequence[str]) -> str:
        """Joined with each skip connection in turn, the deepest first, and made twice as large in between."""
        for name, skip in zip(DECODER, reversed(skips), strict=True):
            if name != DECODER[0]:
                value = self.enlarged(value)
            value = self.node("Concat", [value, skip], f"{name}.joined", axis=1)
            for index in (0, 3):
                value = self.relu(self.normalized(value, f"{name}.conv.{index}", f"{name}.conv.{index + 1}"))
        return value

    def enlarged(self, value: str) -> str:
        scales = self.constant("twice", np.array([1, 1, 2, 2], np.float32))
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.node("Resize", [value, "", scales], f"{value}/enlarged", **mode)

    def head(self, value: str) -> str:
        for index in HEAD:
            value = self.plain(value, f"conv_cls.{index}")
            if index != HEAD[-1]:
                value = self.relu(value)
        return self.node("Transpose", [value], "scores", perm=[0, 2, 3, 1])


def build_craft(tensors: Tensors) -> onnx.ModelProto:
    """The detector as an ONNX model, from its tensors by their names in the file."""
    detector = _Detector(tensors)
    skips = detector.trunk("image")
    detector.head(detector.decoder(detector.bottom(skips[-1]), skips))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "score_height", "score_width", 2])
    return detector.model("craft", [image], [scores])


def export_craft(output: Path | None = None) -> Path:
    """Write the model, into the cache of fetched models where no other place is given, and return its path."""
    model = build_craft(read_torch_file(fetch_model("craft-weights")))
    return write_model(model, output or find_cache() / "craft.onnx")


if __name__ == "__main__":
    print(export_craft(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
