"""Checks of feed arrays against a model's inputs: each fault is one `UsageError` that names the array and the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Array, Feed

_EXTENSION_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def element_type(spec: InputSpec) -> np.dtype[Any]:
    """The NumPy dtype of a tensor input (ml_dtypes for bfloat16 and float8; object for strings)."""
    if spec.dtype == "str":
        return np.dtype(object)
    return np.dtype(getattr(ml_dtypes, spec.dtype) if spec.dtype in _EXTENSION_FLOATS else spec.dtype)


def is_float(dtype: np.dtype[Any]) -> bool:
    """True for every real floating type, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype.name in _EXTENSION_FLOATS


def check_dtype(source: str, spec: InputSpec, dtype: np.dtype[Any]) -> None:
    """Refuse a dtype that can't become the input's without a decision of the user's.

    Floats become the input's float type, integers its integer type (`convert_array` checks that the values fit).
    An integer image for a float input is refused: whether 255 means 255 or 1.0 isn't ours to guess.
    """
    if spec.dtype == "str":
        fits = dtype.kind in "UO"
    else:
        wanted = element_type(spec)
        both_float = is_float(wanted) and is_float(dtype)
        both_integer = wanted.kind in "iu" and dtype.kind in "iu"
        fits = both_float or both_integer or dtype.newbyteorder("=") == wanted
    if not fits:
        raise UsageError(
            f"{source}: {spec.name!r} holds {dtype.name}, the model's input is {spec.dtype}: "
            f"prepare it as the model expects (scaling included) and save it as {spec.dtype}"
        )


def check_dims(source: str, spec: InputSpec, shape: Sequence[int], *, first: int = 0) -> None:
    """Compare the fixed dims from axis `first` on; `shape` and the input have the same rank."""
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if axis >= first and isinstance(wanted, int) and size != wanted:
            raise UsageError(
                f"{source}: {spec.name!r} has shape {shape_text(shape)}, the model's input is "
                f"{shape_text(spec.shape)}: axis {axis} has to be {wanted}"
            )


def shape_text(shape: Sequence[int | str | None]) -> str:
    """A shape as a reader writes it, with ``?`` for unknown."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def convert_array(source: str, spec: InputSpec, array: Array) -> Array:
    """Give the array as onnxruntime wants it: the input's dtype, native byte order, finite, C-contiguous.

    Raises
    ------
    UsageError : an integer doesn't fit, or a float is NaN or infinite (before or after the conversion).
    """
    wanted = element_type(spec)
    if spec.dtype == "str":
        return array.astype(object)
    if wanted.kind in "iu" and array.dtype != wanted and array.size:
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(
                f"{source}: {spec.name!r} holds {array.dtype.name} values that don't fit the model's {spec.dtype} input"
            )
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is refused below
        converted = np.asarray(array, dtype=wanted, order="C")
    if is_float(wanted):
        bad = converted.size - np.count_nonzero(np.isfinite(converted))
        if bad:
            raise UsageError(
                f"{source}: {spec.name!r} holds {bad} NaN or infinite values (as {spec.dtype}): "
                "remove or replace these samples"
            )
    return converted


def check_names(source: str, inputs: Sequence[InputSpec], names: Sequence[str]) -> None:
    """Refuse a feed that lacks an input of the model."""
    for spec in inputs:
        if spec.name not in names and not spec.is_optional:
            held = ", ".join(names) if names else "nothing"
            raise UsageError(f"{source}: no array for the model's input {spec.name!r} (it holds {held}): add it")


def check_feed(source: str, inputs: Sequence[InputSpec], feed: Mapping[str, Any]) -> None:
    """Check names, ranks, fixed dims and dtypes of one complete feed, without looking at the values."""
    if not isinstance(feed, Mapping):
        raise UsageError(f"{source}: expected a dict of input name -> array, got {type(feed).__name__}")
    check_names(source, inputs, list(feed))
    for spec in inputs:
        if not spec.is_tensor or spec.name not in feed:
            continue
        array = _as_array(source, spec, feed[spec.name])
        check_dtype(source, spec, array.dtype)
        if spec.shape:
            if array.ndim != len(spec.shape):
                raise UsageError(
                    f"{source}: {spec.name!r} has shape {shape_text(array.shape)}, the model's input is "
                    f"{shape_text(spec.shape)}: give one array of that rank"
                )
            check_dims(source, spec, array.shape)
        if array.size == 0:
            raise UsageError(f"{source}: {spec.name!r} is empty (shape {shape_text(array.shape)}): give some values")


def convert_feed(source: str, inputs: Sequence[InputSpec], feed: Mapping[str, Any]) -> Feed:
    """Check one complete feed, and give it with the model's dtypes; arrays that are no inputs are left out."""
    check_feed(source, inputs, feed)
    converted: dict[str, Any] = {}
    for spec in inputs:
        if spec.name not in feed:
            continue
        value = feed[spec.name]
        converted[spec.name] = convert_array(source, spec, _as_array(source, spec, value)) if spec.is_tensor else value
    return converted


def _as_array(source: str, spec: InputSpec, value: Any) -> Array:
    """Lists become arrays; a list of Python numbers takes the input's own type."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    try:
        array = np.asarray(value)
        if spec.dtype != "str" and array.dtype in (np.dtype(np.int64), np.dtype(np.float64)):
            array = array.astype(element_type(spec))
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{source}: {spec.name!r} can't be made an array of {spec.dtype} ({error})") from error
    return array


def shapes_of(feed: Feed) -> tuple[tuple[int, ...], ...]:
    """The shapes of a feed's arrays, by name: feeds for which they are equal take about as long to run."""
    return tuple(getattr(feed[name], "shape", ()) for name in sorted(feed))
