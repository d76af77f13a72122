"""Element types and shapes as the protos state them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import onnx

Dims: TypeAlias = tuple[int | str | None, ...]
"""A shape: a number, the name of a symbolic dimension, or None where nothing is known."""

_NUMPY_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}
_DATA_TYPE = {
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
}


def dtype_name(data_type: int) -> str:
    """The name of an ONNX element type as NumPy and ml_dtypes write it, e.g. "float32", "int8", "float8e4m3fn"."""
    if data_type not in onnx.TensorProto.DataType.values():
        return f"element type {data_type}"
    name: str = onnx.TensorProto.DataType.Name(onnx.TensorProto.DataType.ValueType(data_type))
    return _NUMPY_NAMES.get(name, name.lower())


def is_quantized(dtype: str) -> bool:
    """True for the narrow types in which quantized weights are stored."""
    return dtype in {"int8", "uint8"} or dtype.startswith(("int4", "uint4", "int2", "uint2", "float8", "float4"))


def element_count(dims: Iterable[int]) -> int:
    """Number of elements; 0 where a dimension is malformed."""
    sizes = list(dims)
    return math.prod(sizes) if all(size >= 0 for size in sizes) else 0


def value_dims(value: onnx.ValueInfoProto) -> Dims | None:
    """The shape that `value` states, or None where it states none (or isn't a dense tensor)."""
    tensor_type = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor_type.HasField("shape"):
        return None
    return tuple(_dim(dim) for dim in tensor_type.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    # A name that isn't UTF-8 comes as bytes: no symbol that could be written again.
    return dim.dim_param if dim.HasField("dim_param") and isinstance(dim.dim_param, str) and dim.dim_param else None


def tensor_value_info(name: str, dtype: str, dims: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    """A value_info entry of a dense tensor of one of the factorizable dtypes; no shape where `dims` is None."""
    return onnx.helper.make_tensor_value_info(name, _DATA_TYPE[dtype], dims)
