"""Outputs that are named as logits: scores that only ever meet a softmax, which ignores a level common to a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feed_arrays import is_float
from lowrank_onnx.name_patterns import matches

FLAG = "--logits"

_NAMES = {code: name.lower() for name, code in TensorProto.DataType.items()}
_FLOATS = frozenset(code for code, name in _NAMES.items() if "float" in name or name == "double")
_OTHERS = {**_NAMES, TensorProto.STRING: "strings"}


def find_logits(model: onnx.ModelProto, patterns: Sequence[str]) -> tuple[str, ...]:
    """The outputs that the patterns name, in the model's order.

    Parameters
    ----------
    model : with or without its weights.
    patterns : names or globs, as for ``--include``.

    Raises
    ------
    UsageError
        A pattern fits no output, or one that can't be logits by what the model says of it.
    """
    names = [output.name for output in model.graph.output]
    for pattern in patterns:
        if not any(matches(pattern, [name]) for name in names):
            raise UsageError(f"{FLAG} {pattern}: no output has that name: expected some of {', '.join(names)}")
    found = [output for output in model.graph.output if any(matches(pattern, [output.name]) for pattern in patterns)]
    for output in found:
        _check_declared(output)
    return tuple(output.name for output in found)


def check_values(name: str, value: Any) -> None:
    """Refuse an output that was named as logits and turns out to be none (`UsageError`)."""
    if not isinstance(value, np.ndarray | np.generic):
        kind = {"dict": "map", "list": "sequence"}.get(type(value).__name__, "value without elements")
        raise _no_logits(name, f"it is a {kind}")
    if not is_float(value.dtype):
        raise _no_logits(name, f"its elements are {'strings' if value.dtype.kind in 'OUST' else value.dtype.name}")
    _check_shape(name, value.shape)


def _check_declared(output: onnx.ValueInfoProto) -> None:
    """As `check_values`, as far as the model tells."""
    kind = output.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise _no_logits(output.name, f"it is a {kind.removesuffix('_type').replace('_', ' ')}")
    tensor = output.type.tensor_type
    if tensor.elem_type and tensor.elem_type not in _FLOATS:
        raise _no_logits(output.name, f"its elements are {_OTHERS.get(tensor.elem_type, 'of an unknown type')}")
    if tensor.HasField("shape"):
        _check_shape(output.name, (dim.dim_value or math.inf for dim in tensor.shape.dim))  # 0 where it isn't known


def _check_shape(name: str, shape: Iterable[float]) -> None:
    match tuple(shape):
        case ():
            raise _no_logits(name, "it is a scalar")
        case (*_, classes) if classes < 2:
            raise _no_logits(name, f"its last axis has {classes} of them")


def _no_logits(name: str, fault: str) -> UsageError:
    return UsageError(f"{FLAG}: output {name!r}: {fault}: expected floats with at least 2 classes on the last axis")
