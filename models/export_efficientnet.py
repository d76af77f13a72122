"""Write EfficientNet-Lite2, which classifies images, as ONNX: ``python -m models.export_efficientnet [OUTPUT]``.

The weights, trained on ImageNet-1k, are fetched by ``models/fetch.py``. The graph is written node by node after the
paper (Tan and Le, arXiv 1905.11946) and its Lite variant: no squeeze-and-excitation, ReLU6 for an activation, and a
stem and a head of fixed width. Batch normalization is folded into the convolutions, as exporters do.

Input ``image``, float32 (batch, 3, 260, 260), (pixel - 127) / 128; output ``logits``, float32 (batch, 1000).
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.fetch import fetch_model, find_cache
from models.graph_writer import GraphWriter, fold_normalization, write_model
from models.torch_file import Tensors, read_torch_file

IMAGE_SIZE, CLASSES = 260, 1000

EPSILON = 1e-3
"""Of the batch normalizations."""

STAGES = ((1, 1), (3, 2), (3, 2), (4, 2), (4, 1), (5, 2), (1, 1))
"""Blocks of each stage, and the stride of its first block."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[list[int], int]:
    """Pads with which a convolution gives ceil(size / stride), the odd pixel behind; and that size."""
    result = -(-size // stride)
    total = max(0, (result - 1) * stride + kernel - size)
    before, behind = total // 2, total - total // 2
    return [before, before, behind, behind], result


class _Classifier(GraphWriter):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors
        self.size = IMAGE_SIZE

    def convolve(self, value: str, name: str, normalization: str, stride: int = 1, group: int = 1) -> str:
        """A convolution with the batch normalization that follows it; keeps account of the image's size."""
        weight = self.tensors[f"{name}.weight"]
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (self.tensors[f"{normalization}.{part}"] for part in parts)
        folded = fold_normalization(weight, 0.0, scale, shift, mean, variance, EPSILON)
        pads, self.size = same_padding(self.size, weight.shape[-1], stride)
        return self.convolution(value, *folded, name, pads=pads, strides=[stride, stride], group=group)

    def relu6(self, value: str) -> str:
        low, high = self.constant("zero", np.float32(0.0)), self.constant("six", np.float32(6.0))
        return self.node("Clip", [value, low, high], f"{value}/relu6")

    def block(self, value: str, name: str, stride: int) -> str:
        """Expanded by a 1 x 1 convolution, filtered by channel, projected; with a way past it where shapes allow."""
        start = value
        if f"{name}._expand_conv.weight" in self.tensors:
            value = self.relu6(self.convolve(value, f"{name}._expand_conv", f"{name}._bn0"))
        channels = len(self.tensors[f"{name}._depthwise_conv.weight"])
        filtered = self.convolve(value, f"{name}._depthwise_conv", f"{name}._bn1", stride, channels)
        projected = self.convolve(self.relu6(filtered), f"{name}._project_conv", f"{name}._bn2")
        inner = self.tensors.get(f"{name}._expand_conv.weight")
        channels_in = channels if inner is None else inner.shape[1]
        if stride != 1 or len(self.tensors[f"{name}._project_conv.weight"]) != channels_in:
            return projected
        return self.node("Add", [projected, start], f"{name}.sum")

    def classify(self, value: str) -> str:
        pooled = self.node("GlobalAveragePool", [value], "pooled")
        flat = self.node("Flatten", [pooled], "features", axis=1)
        inputs = [flat, *(self.constant(f"_fc.{part}", self.tensors[f"_fc.{part}"]) for part in ("weight", "bias"))]
        return self.node("Gemm", inputs, "logits", transB=1)


def build_efficientnet(tensors: Tensors) -> onnx.ModelProto:
    """The classifier as an ONNX model, from its tensors by their names in the file."""
    classifier = _Classifier(tensors)
    value = classifier.relu6(classifier.convolve("image", "_conv_stem", "_bn0", stride=2))
    strides = itertools.chain.from_iterable([stride, *[1] * (count - 1)] for count, stride in STAGES)
    for index, stride in enumerate(strides):
        value = classifier.block(value, f"_blocks.{index}", stride)
    classifier.classify(classifier.relu6(classifier.convolve(value, "_conv_head", "_bn1")))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    return classifier.model("efficientnet_lite2", [image], [logits])


def export_efficientnet(output: Path | None = None) -> Path:
    """Write the model, into the cache of fetched models where no other place is given, and return its path."""
    model = build_efficientnet(read_torch_file(fetch_model("efficientnet-lite2-weights")))
    return write_model(model, output or find_cache() / "efficientnet-lite2.onnx")


if __name__ == "__main__":
    print(export_efficientnet(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
