"""What the exporters share: a graph written node by node, each node named after its one output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

OPSET = 20
IR_VERSION = 10


class GraphWriter:
    """The nodes and initializers written so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and name both after it."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"/{output}", **attributes))
        return output

    def constant(self, name: str, values: ArrayLike) -> str:
        """Add an initializer, once."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def convolution(
        self,
        value: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        output: str,
        **attributes: Any,
    ) -> str:
        """A Conv of a square kernel, by default with the padding that keeps the size at stride 1."""
        size = weight.shape[-1]
        geometry = {"kernel_shape": [size, size], "pads": [size // 2] * 4} | attributes
        inputs = [value, self.constant(f"{output}.weight", weight), self.constant(f"{output}.bias", bias)]
        return self.node("Conv", inputs, output, **geometry)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished model, checked.

        Raises
        ------
        onnx.checker.ValidationError
            If the graph isn't valid.
        """
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name=f"export_{name}")
        onnx.checker.check_model(model, full_check=True)
        return model


def fold_normalization(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | float,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    epsilon: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of a convolution that does the batch normalization after it as well.

    Parameters
    ----------
    weight : (out, in, height, width), of the convolution.
    bias : (out,) of the convolution, or 0.
    scale, shift, mean, variance : (out,) of the normalization: (y - mean) / sqrt(variance + epsilon) * scale + shift.
    epsilon : of the normalization.
    """
    gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    folded_bias = (bias - mean.astype(np.float64)) * gain + shift
    return (weight * gain[:, None, None, None]).astype(np.float32), folded_bias.astype(np.float32)


def write_model(model: onnx.ModelProto, target: Path) -> Path:
    """Write a model in one step, the same bytes for the same model, and return its path.

    A file that has these bytes already stays as it is, since another process may be reading it.
    """
    content = model.SerializeToString(deterministic=True)
    if target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(target)
    return target
