"""How onnxruntime names the types of values, and how they become NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_onnx.errors import ModelError
from lowrank_onnx.types import Array

_NUMPY_NAMES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}
_SAME_IN_NUMPY = frozenset(
    ["float16", "bfloat16", "bool", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)

EXTENSION_TYPES = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
}
"""Whole-byte element types that NumPy knows only through ml_dtypes and that onnxruntime's own conversion to and from
NumPy refuses (bfloat16) or relabels (float8 comes back as uint8): name -> TensorProto.DataType.
"""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model says of one of its inputs.

    Attributes
    ----------
    name : the input's name.
    dtype : the NumPy name of a tensor's element type (``"str"`` for strings, ml_dtypes names for bfloat16 and float8),
        or onnxruntime's own type string for all else, e.g. ``"seq(tensor(float))"``.
    shape : a whole number, a symbol or None (unknown) for each axis. A scalar and an input of unknown rank both have
        ``()``, since onnxruntime doesn't tell them apart.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def is_tensor(self) -> bool:
        """False for sequences, maps and optionals."""
        return "(" not in self.dtype

    @property
    def is_optional(self) -> bool:
        """True where a feed may leave the input out."""
        return self.dtype.startswith("optional(")


def describe_inputs(arguments: Sequence[Any]) -> tuple[InputSpec, ...]:
    """What a session says of its inputs, from onnxruntime's descriptions."""
    return tuple(InputSpec(each.name, numpy_name(each.type), tuple(each.shape)) for each in arguments)


def numpy_name(onnxruntime_type: str) -> str:
    """NumPy's name of a tensor's element type, from onnxruntime's type string; that string itself for all else."""
    element = onnxruntime_type.removeprefix("tensor(").removesuffix(")")
    if onnxruntime_type != f"tensor({element})":
        return onnxruntime_type
    if element in _SAME_IN_NUMPY:
        return element
    return _NUMPY_NAMES.get(element, onnxruntime_type)


def read_value(value: Any) -> Array:
    """The array in one of onnxruntime's values (`ModelError` where it lies on another device and can't be read)."""
    name = numpy_name(value.data_type())
    if name not in EXTENSION_TYPES:
        result: Array = value.numpy()
        return result
    import ml_dtypes

    if value.device_name() != "cpu":
        raise ModelError(f"a {name} output stays on {value.device_name()}, where it can't be read: use --provider cpu")
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), np.dtype(getattr(ml_dtypes, name))).reshape(value.shape())
