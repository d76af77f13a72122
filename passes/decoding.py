"""Operators between a stored tensor and the weight that a node reads: what they do, if it is known exactly.

Exporters and quantizers store weights transposed, reshaped, in a narrow type or as scaled integers. A step is taken
only where its result follows from shapes and small stored numbers; the large tensors aren't read here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import onnx
import onnx.numpy_helper

from lowrank_onnx.passes.value_types import dtype_name
from lowrank_onnx.types import FLOAT_DTYPES, DecodeStep, Encoding, Operation, WeightRef

INTEGER_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "int64": 64}
"""Integer types that weights and their zero points are stored in, with the bits of an element."""

_FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_MOST_NUMBERS = 64
_ARITHMETIC: dict[str, Operation] = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide"}

Trace: TypeAlias = Callable[[str], WeightRef | None]
"""From the name of a node's input to the stored, perhaps decoded, tensor behind it."""

Numbers: TypeAlias = Callable[[str], tuple[int, ...] | None]
"""From the name of a node's input to the few stored integers behind it."""


def stored_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a stored tensor of one of the types that can be decoded."""
    return -(-math.prod(shape) * {**_FLOAT_BITS, **INTEGER_BITS}[dtype] // 8)


def is_decodable(dtype: str) -> bool:
    """Whether a stored tensor of this type can be the beginning of a decoded weight, or its scale or zero point."""
    return dtype in FLOAT_DTYPES or dtype in INTEGER_BITS


def decoded(node: onnx.NodeProto, trace: Trace, numbers: Numbers) -> WeightRef | None:
    """The weight that `node` makes of stored tensors; None where the node does anything else.

    Parameters
    ----------
    node : of the default domain, with one output.
    trace, numbers : what is behind its inputs.
    """
    maker = _MAKERS.get(node.op_type)
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if maker is None or not node.input or any(attribute.ref_attr_name for attribute in node.attribute):
        return None
    made = maker(node, attributes, trace, numbers)
    if made is None:
        return None
    source, step = made
    return _extended(source, step, node.op_type)


_Attributes: TypeAlias = dict[str, onnx.AttributeProto]
_Made: TypeAlias = tuple[WeightRef, DecodeStep] | None


def _extended(source: WeightRef, step: DecodeStep, operator: str) -> WeightRef:
    before = source.encoding or Encoding((), stored_bytes(source.dtype, source.shape), f"{source.dtype} behind")
    behind = sum(
        operand.encoding.nbytes if operand.encoding else stored_bytes(operand.dtype, operand.shape)
        for operand in step.operands
    )
    arrow = " ->" if before.steps else ""
    encoding = Encoding((*before.steps, step), before.nbytes + behind, f"{before.description}{arrow} {operator}")
    return replace(source, dtype=step.dtype, shape=step.shape, encoding=encoding)


def _transpose(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    source = trace(node.input[0])
    if source is None or len(node.input) != 1:
        return None
    size = len(source.shape)
    axes = tuple(attributes["perm"].ints) if "perm" in attributes else tuple(reversed(range(size)))
    if sorted(axes) != list(range(size)):
        return None
    return source, DecodeStep("transpose", source.dtype, tuple(source.shape[axis] for axis in axes), axes)


def _reshape(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    if len(node.input) != 2:
        return None
    source, wanted = trace(node.input[0]), numbers(node.input[1])
    if source is None or wanted is None:
        return None
    keep_zero = "allowzero" not in attributes or attributes["allowzero"].i == 0
    shape = [
        source.shape[axis] if size == 0 and keep_zero and axis < len(source.shape) else size
        for axis, size in enumerate(wanted)
    ]
    if shape.count(-1) == 1:
        known = math.prod(size for size in shape if size != -1)
        if known <= 0 or math.prod(source.shape) % known:
            return None
        shape[shape.index(-1)] = math.prod(source.shape) // known
    return _reshaped(source, shape)


def _reshaped(source: WeightRef, shape: Sequence[int]) -> _Made:
    if any(size <= 0 for size in shape) or math.prod(shape) != math.prod(source.shape):
        return None
    return source, DecodeStep("reshape", source.dtype, tuple(shape))


def _axes(node: onnx.NodeProto, attributes: _Attributes, numbers: Numbers, rank: int) -> set[int] | None:
    """The axes of a Squeeze or Unsqueeze, an attribute below opset 13 and an input since; None where none are known."""
    given: Sequence[int] | None = None
    if "axes" in attributes:
        given = attributes["axes"].ints
    elif len(node.input) == 2 and node.input[1]:
        given = numbers(node.input[1])
    if given is None or not all(-rank <= axis < rank for axis in given):
        return None
    axes = {axis % rank for axis in given}
    return axes if len(axes) == len(given) else None


def _squeeze(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    source = trace(node.input[0])
    if source is None:
        return None
    if "axes" in attributes or len(node.input) == 2:
        axes = _axes(node, attributes, numbers, len(source.shape))
        if axes is None or any(source.shape[axis] != 1 for axis in axes):
            return None
    else:
        axes = {axis for axis, size in enumerate(source.shape) if size == 1}
    return _reshaped(source, [size for axis, size in enumerate(source.shape) if axis not in axes])


def _unsqueeze(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    source = trace(node.input[0])
    count = len(attributes["axes"].ints) if "axes" in attributes else None
    if count is None and len(node.input) == 2:
        given = numbers(node.input[1])
        count = None if given is None else len(given)
    if source is None or count is None:
        return None
    rank = len(source.shape) + count
    axes = _axes(node, attributes, numbers, rank)
    if axes is None:
        return None
    sizes = iter(source.shape)
    return _reshaped(source, [1 if axis in axes else next(sizes) for axis in range(rank)])


def _cast(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    source = trace(node.input[0])
    dtype = dtype_name(attributes["to"].i) if "to" in attributes else ""
    widening = dtype in FLOAT_DTYPES or dtype == "int32"
    if source is None or not widening or (source.dtype in FLOAT_DTYPES and dtype not in FLOAT_DTYPES):
        return None
    return source, DecodeStep("cast", dtype, source.shape)


def _arithmetic(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    """The larger operand is the weight; the other must not make it grow."""
    if len(node.input) != 2 or attributes:  # below opset 7 an attribute says how to broadcast
        return None
    operands = [trace(name) for name in node.input]
    first, second = operands
    if first is None or second is None or first.dtype != second.dtype:
        return None
    if first.dtype not in FLOAT_DTYPES and first.dtype != "int32":
        return None
    if math.prod(second.shape) > math.prod(first.shape):
        if node.op_type in ("Sub", "Div"):
            return None
        first, second = second, first
    if not _broadcasts(second.shape, first.shape):
        return None
    return first, DecodeStep(_ARITHMETIC[node.op_type], first.dtype, first.shape, operands=(second,))


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether an array of `shape` broadcasts to `target` and leaves it as it is."""
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in aligned)


def _dequantize(node: onnx.NodeProto, attributes: _Attributes, trace: Trace, numbers: Numbers) -> _Made:
    if not 2 <= len(node.input) <= 3 or not node.input[1] or set(attributes) - {"axis", "block_size"}:
        return None
    operands = [trace(name) for name in node.input if name]
    source, scale = operands[0], operands[1]
    if source is None or scale is None or None in operands or source.dtype not in INTEGER_BITS:
        return None
    zero_point = operands[2] if len(operands) == 3 else None
    if scale.dtype not in FLOAT_DTYPES or (zero_point is not None and zero_point.shape != scale.shape):
        return None
    if zero_point is not None and zero_point.dtype != source.dtype:
        return None
    axis = attributes["axis"].i if "axis" in attributes else 1
    block = attributes["block_size"].i if "block_size" in attributes else 0
    axes: tuple[int, ...] = ()
    if math.prod(scale.shape) != 1 or block:
        rank = len(source.shape)
        if not -rank <= axis < rank or block < 0:
            return None
        axes = (axis % rank,)
        if not _scales_fit(scale.shape, source.shape, axes[0], block):
            return None
    step = DecodeStep("dequantize", scale.dtype, source.shape, axes, block, tuple(o for o in operands[1:] if o))
    return source, step


def _scales_fit(scale: Sequence[int], shape: Sequence[int], axis: int, block: int) -> bool:
    if not block:
        return tuple(scale) == (shape[axis],)
    blocked = [-(-size // block) if index == axis else size for index, size in enumerate(shape)]
    return list(scale) == blocked


_MAKERS: dict[str, Callable[[onnx.NodeProto, _Attributes, Trace, Numbers], _Made]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "DequantizeLinear": _dequantize,
}


def small_integers(tensor: onnx.TensorProto) -> tuple[int, ...] | None:
    """The values of a short vector of integers that lie in the model itself; None where they are anything else."""
    if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or len(tensor.dims) > 1:
        return None
    if tensor.data_location == onnx.TensorProto.EXTERNAL or not 0 <= math.prod(tensor.dims) <= _MOST_NUMBERS:
        return None
    try:
        return tuple(int(value) for value in onnx.numpy_helper.to_array(tensor).reshape(-1))
    except (ValueError, TypeError):
        return None
