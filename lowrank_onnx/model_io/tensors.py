"""What a TensorProto says about itself: where the tensors of a model are, their bytes, their values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from google.protobuf.message import Message as ProtoMessage

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.wire import MESSAGES
from lowrank_onnx.types import Array

_BITS_BY_NAME = {
    "FLOAT": 32,
    "UINT8": 8,
    "INT8": 8,
    "UINT16": 16,
    "INT16": 16,
    "INT32": 32,
    "INT64": 64,
    "BOOL": 8,
    "FLOAT16": 16,
    "DOUBLE": 64,
    "UINT32": 32,
    "UINT64": 64,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
    "BFLOAT16": 16,
    "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8,
    "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8,
    "FLOAT8E8M0": 8,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
    "UINT4": 4,
    "INT4": 4,
    "FLOAT4E2M1": 4,
    "UINT2": 2,
    "INT2": 2,
}

BITS: dict[int, int] = {
    number: _BITS_BY_NAME[name] for name, number in onnx.TensorProto.DataType.items() if name in _BITS_BY_NAME
}
"""Bits of one stored element, by TensorProto.DataType, for the types that this onnx knows; strings have none."""


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor of a model; `initializer` tells the dense initializers of graphs from attributes and sparse parts."""

    tensor: onnx.TensorProto
    initializer: bool


def find_tensors(message: ProtoMessage) -> Iterator[FoundTensor]:
    """Every TensorProto in `message`, in the order of its serialized form.

    Initializers, sparse initializers and tensor attributes count, in the main graph, in subgraphs, in functions and
    in training_info. The tensors are the message's own, not copies.
    """
    initializers = isinstance(message, onnx.GraphProto)
    for field, value in message.ListFields():
        if field.number not in MESSAGES[message.DESCRIPTOR.full_name].children:
            continue
        for child in [value] if isinstance(value, ProtoMessage) else value:
            if isinstance(child, onnx.TensorProto):
                yield FoundTensor(child, initializers)
            else:
                yield from find_tensors(child)


def readable_name(name: str | bytes) -> str:
    """A name from an untrusted file, safe to print: quoted, ASCII, on one line, not endless."""
    shown = ascii(name)
    return shown if len(shown) <= 120 else f"{shown[:100]}...{shown[-10:]}"


def count_elements(tensor: onnx.TensorProto) -> int:
    """The product of the dimensions. Raises `ModelError` where one of them is negative."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(
            f"tensor {readable_name(tensor.name)} has dimensions {list(tensor.dims)[:8]}: expected none below 0;"
            " the file is damaged, export it again"
        )
    return math.prod(tensor.dims)


def count_tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the tensor's values as raw data: elements times bits, rounded up (2-, 4- and 6-bit types are packed).

    For strings, the bytes of all of them. Raises `ModelError` for an element type that onnx doesn't know.
    """
    elements = count_elements(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.data_type not in BITS:
        raise ModelError(
            f"tensor {readable_name(tensor.name)} has element type {tensor.data_type}: expected a type that onnx"
            f" {onnx.__version__} knows; upgrade onnx, or export the model again"
        )
    return -(-elements * BITS[tensor.data_type] // 8)


def check_size(tensor: onnx.TensorProto, raw_bytes: int | None = None) -> None:
    """Raise `ModelError` where a numeric tensor isn't as long as its type and dimensions say.

    `raw_bytes` is the length of its raw data where that lies elsewhere. Values in a typed field are counted loosely (an
    int4 entry holds two): it is enough that dimensions can't claim many times what is there.
    """
    expected = count_tensor_bytes(tensor)
    if raw_bytes is None and not tensor.HasField("raw_data"):
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        if count_elements(tensor) <= 2 * len(getattr(tensor, field)):
            return
        raw_bytes = 0
    held = len(tensor.raw_data) if raw_bytes is None else raw_bytes
    if held != expected:
        raise _wrong_size(tensor, held, expected)


def _wrong_size(tensor: onnx.TensorProto, held: int, expected: int) -> ModelError:
    return ModelError(
        f"tensor {readable_name(tensor.name)} holds {held} bytes: expected {expected} for its type and"
        f" dimensions {list(tensor.dims)[:8]}; the file is damaged, export it again"
    )


def view_raw(tensor: onnx.TensorProto, raw: Array) -> Array:
    """Raw little-endian bytes (a flat uint8 array) as the array that `tensor` describes; without a copy if it can be.

    Elements smaller than a byte are unpacked, one byte each. An array whose start isn't aligned for its type is
    copied, since not every library takes such memory. Raises `ModelError` where the number of bytes is wrong.
    """
    expected = count_tensor_bytes(tensor)
    if raw.size != expected:
        raise _wrong_size(tensor, raw.size, expected)
    if BITS[tensor.data_type] < 8:
        packed = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw.tobytes())
        return onnx.numpy_helper.to_array(packed)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if raw.ctypes.data % dtype.alignment:
        raw = raw.copy()
    try:
        return raw.view(dtype).reshape(tuple(tensor.dims))
    except ValueError as error:  # dimensions beyond what NumPy can count, next to one that is 0
        raise _unreadable(tensor, error) from error


def decode_inline(tensor: onnx.TensorProto) -> Array:
    """The array of a tensor that holds its own values, raw or typed. Raises `ModelError` where it is malformed."""
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        return view_raw(tensor, np.frombuffer(tensor.raw_data, np.uint8))
    count_tensor_bytes(tensor)
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _unreadable(tensor, error) from error


def _unreadable(tensor: onnx.TensorProto, error: Exception) -> ModelError:
    reason = " ".join(ascii(str(error))[1:-1].split())[:200]
    return ModelError(
        f"tensor {readable_name(tensor.name)} can't be read: {reason}; expected as many values as its dimensions"
        f" {list(tensor.dims)[:8]} say; the file is damaged, export it again"
    )
