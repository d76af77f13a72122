"""Versions of a float32 model with its weights in narrower types: what people store, and what quantizers make."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank_onnx.config import FORM_NAMES
from lowrank_onnx.types import Array

Storage: TypeAlias = Literal["float16", "bfloat16", "int8"]

FORMS_TO_QUANTIZE = tuple(name for name in FORM_NAMES if name != "pivoted")
"""What is quantized next is better not pivoted: those outputs that are combined from others magnify their rounding."""

_WEIGHT_SLOT = {"MatMul": 1, "Gemm": 1, "Conv": 1}
_FEWEST = 256
"""Elements of a weight that is worth storing in another type."""


def store_narrow(model: onnx.ModelProto, storage: Storage) -> onnx.ModelProto:
    """The model with its MatMul, Gemm and Conv weights stored in another type, and decoded to float32 by nodes.

    float16 and bfloat16 are behind a Cast. int8 is behind a DequantizeLinear with a scale for each output: symmetric,
    weights only.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    wanted = dict(_weights(graph))
    nodes = []
    for tensor in list(graph.initializer):
        if tensor.name not in wanted:
            continue
        values = numpy_helper.to_array(tensor)
        graph.initializer.remove(tensor)
        stored = f"{tensor.name}.{storage}"
        if storage == "int8":
            axis = wanted[tensor.name]
            scale = np.abs(values).max(axis=tuple(set(range(values.ndim)) - {axis}), keepdims=True) / 127
            scale = np.maximum(scale, np.float32(1e-12)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), stored))
            graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{stored}.scale"))
            nodes.append(helper.make_node("DequantizeLinear", [stored, f"{stored}.scale"], [tensor.name], axis=axis))
        else:
            dtype = np.dtype(np.float16 if storage == "float16" else ml_dtypes.bfloat16)
            graph.initializer.append(numpy_helper.from_array(values.astype(dtype), stored))
            nodes.append(helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *following])
    return copy


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """The weights' names with the axis of their outputs."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == tensor.FLOAT}
    for node in graph.node:
        slot = _WEIGHT_SLOT.get(node.op_type)
        name = node.input[slot] if slot is not None else ""
        if math.prod(sizes.get(name, ())) >= _FEWEST:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            yield name, 0 if node.op_type == "Conv" or transposed else len(sizes[name]) - 1


def compute_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 altogether, but for its inputs and outputs, by onnxruntime's own converter."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which values it rounded to the smallest number
        converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return converted


class _Reader:
    """Feeds, as onnxruntime's calibration asks for them."""

    def __init__(self, feeds: list[Mapping[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def quantize_dynamically(source: Path, target: Path, *, per_channel: bool = False) -> None:
    """Int8 weights with a scale for each, or for each of their outputs, and activations that are quantized at run time.

    By onnxruntime's `quantize_dynamic`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(_for_quantizer(source), target, weight_type=QuantType.QInt8, per_channel=per_channel)


def _for_quantizer(source: Path) -> onnx.ModelProto:
    """The model without what it says of its inner values, and its Constant nodes' tensors as initializers.

    PyTorch's exporter states the shapes of weights, too; the quantizer transposes a Gemm's weight in place and then
    stumbles over the shape that is stated. Of a Conv it wants the weight to be an initializer.
    """
    model = onnx.load(source)
    graph = model.graph
    del graph.value_info[:]
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        graph.initializer.append(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    return model


def quantize_statically(source: Path, target: Path, feeds: list[Mapping[str, Array]]) -> None:
    """Int8 weights and activations, with QuantizeLinear and DequantizeLinear, by onnxruntime's `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    reader = type("Reader", (_Reader, CalibrationDataReader), {})(feeds)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, **types)


def quantize_to_four_bits(source: Path, target: Path) -> None:
    """4-bit weights of MatMul in blocks of 32 (MatMulNBits), by onnxruntime's quantizer."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)
