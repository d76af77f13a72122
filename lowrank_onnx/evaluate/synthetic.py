"""Feeds made from a model's signature alone: enough to run and time it, no proof of its accuracy.

Sizes of dims that the model leaves open, the first rule that applies:

1. `dims` of the caller, by symbol;
2. a sum such as ``past_sequence_length + 1``: the sum of its parts;
3. a symbol that speaks of the batch: `batch_size`;
4. a symbol that speaks of audio samples: 16,000;
5. the last axis of a 2-D float input, which is taken for a waveform: 512, unless it is a mask or another kind of input
   has the same symbol;
6. a symbol that speaks of a sequence, tokens, frames, time or lengths: 32; of channels: 3; of height or width: 64;
7. the first axis, and any axis of a recurrent state (``state``, ``hidden``, ``h0``, ``c0``): `batch_size`;
8. axes 2 and 3 of a 4-D input: 64, and axis 1: 3; axes 2 to 4 of a 5-D input: 16;
9. anything else: 32.

The same symbol has the same size everywhere. Values: standard normal for floats and 1 for float masks; integers by the
input's name: masks 1, token types and segments 0, positions 0, 1, 2, ..., lengths 32, sample rates 16,000, and else
random in [0, limit), where the limit is `integer_limits` of the caller, or 256 for uint8, 128 for int8, 100 for names
that speak of ids or tokens, and 2 for the rest; bools are random, masks True.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feed_arrays import element_type, is_float
from lowrank_onnx.evaluate.feeds import FeedGroup, Feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Array, Feed

SEQUENCE_LENGTH = 32
_IMAGE_SIDE = 64
_VOLUME_SIDE = 16
_WAVEFORM = 512
_SAMPLE_RATE = 16_000

_AUDIO = re.compile(r"sample|audio|wave", re.IGNORECASE)
_SYMBOL_SIZES = (
    (re.compile(r"seq|token|frame|len|time", re.IGNORECASE), SEQUENCE_LENGTH),
    (re.compile(r"channel", re.IGNORECASE), 3),
    (re.compile(r"height|width|image|^[hw]$", re.IGNORECASE), _IMAGE_SIDE),
)
_BATCH = re.compile(r"batch|^[bn]$", re.IGNORECASE)
_STATE = re.compile(r"state|hidden|^[hc]_?0?$", re.IGNORECASE)


def synthetic_feeds(
    inputs: Sequence[InputSpec],
    *,
    seed: int,
    feeds: int = 8,
    batch_size: int = 1,
    dims: Mapping[str, int] | None = None,
    integer_limits: Mapping[str, int] | None = None,
) -> Feeds:
    """Make feeds from a model's inputs; the module's docstring lists the rules.

    Parameters
    ----------
    inputs : the model's inputs, from `Session.inputs`.
    seed : of all values: the same seed gives the same bytes, however often the feeds are iterated.
    feeds : how many.
    batch_size : samples of one feed, where the model leaves that open.
    dims : sizes of symbolic dims.
    integer_limits : for integer inputs, the smallest value that is too large (the rows of the table it indexes).

    Raises
    ------
    UsageError : an input can't be made up (a string, a sequence, ...), or an argument is out of its range.
    """
    if feeds < 1 or batch_size < 1:
        raise UsageError(f"synthetic feeds: {feeds} feeds of {batch_size} samples: expected at least 1 of each")
    for symbol, size in (dims or {}).items():
        if size < 1:
            raise UsageError(f"synthetic feeds: dim {symbol}={size}: expected a size of at least 1")
    made = tuple(spec for spec in inputs if not spec.is_optional)
    for spec in made:
        if not spec.is_tensor or spec.dtype == "str" or spec.dtype.startswith("complex"):
            raise UsageError(
                f"the model's input {spec.name!r} is {spec.dtype}, which can't be made up: give real feeds "
                "(an .npz, a directory of ONNX test data, or dicts from Python)"
            )
    sizes = _resolve_symbols(made, dict(dims or {}), batch_size)
    shapes = {spec.name: _resolve_shape(spec, sizes, batch_size) for spec in made}
    limits = dict(integer_limits or {})

    def load(index: int) -> Iterator[Feed]:
        yield {
            spec.name: _make_values(spec, shapes[spec.name], limits, np.random.default_rng([seed, index, position]))
            for position, spec in enumerate(made)
        }

    samples = feeds * next((shapes[spec.name][0] for spec in made if shapes[spec.name]), 1)
    return Feeds(
        description=f"{feeds} synthetic feed{'' if feeds == 1 else 's'} (seed {seed})",
        synthetic=True,
        samples=samples,
        groups=tuple(FeedGroup(1, functools.partial(load, index)) for index in range(feeds)),
    )


def _resolve_symbols(inputs: Sequence[InputSpec], sizes: dict[str, int], batch_size: int) -> dict[str, int]:
    """A size for every symbol; the axis at which a symbol is met first decides where its name doesn't."""
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in sizes and "+" not in dim:
                users = [other for other in inputs if dim in other.shape]
                waveform = axis == 1 and all(_may_be_waveform(user) for user in users)
                by_name = _size_by_name(dim, batch_size, waveform=waveform)
                sizes[dim] = by_name or _size_by_place(spec, axis, batch_size)
    for spec in inputs:
        for dim in spec.shape:
            if isinstance(dim, str) and dim not in sizes:
                sizes[dim] = sum(_size_of_part(part.strip(), sizes, batch_size) for part in dim.split("+"))
    return sizes


def _size_of_part(part: str, sizes: Mapping[str, int], batch_size: int) -> int:
    if part.isdecimal():
        return int(part)
    return sizes.get(part) or _size_by_name(part, batch_size) or SEQUENCE_LENGTH


def _size_by_name(symbol: str, batch_size: int, *, waveform: bool = False) -> int | None:
    if _BATCH.search(symbol):
        return batch_size
    if _AUDIO.search(symbol):
        return _SAMPLE_RATE
    if waveform:
        return _WAVEFORM
    return next((size for pattern, size in _SYMBOL_SIZES if pattern.search(symbol)), None)


def _size_by_place(spec: InputSpec, axis: int, batch_size: int) -> int:
    rank = len(spec.shape)
    if axis == 0 or _STATE.search(spec.name):
        return batch_size
    if rank == 4:
        return 3 if axis == 1 else _IMAGE_SIDE
    if rank == 5 and axis >= 2:
        return _VOLUME_SIDE
    return _WAVEFORM if axis == 1 and _may_be_waveform(spec) else SEQUENCE_LENGTH


def _may_be_waveform(spec: InputSpec) -> bool:
    return len(spec.shape) == 2 and is_float(element_type(spec)) and "mask" not in spec.name.casefold()


def _resolve_shape(spec: InputSpec, sizes: Mapping[str, int], batch_size: int) -> tuple[int, ...]:
    return tuple(
        dim if isinstance(dim, int) else sizes[dim] if isinstance(dim, str) else _size_by_place(spec, axis, batch_size)
        for axis, dim in enumerate(spec.shape)
    )


def _make_values(
    spec: InputSpec, shape: tuple[int, ...], limits: Mapping[str, int], generator: np.random.Generator
) -> Array:
    dtype = element_type(spec)
    name = spec.name.casefold()
    if "mask" in name:
        return np.ones(shape, dtype)
    if is_float(dtype):
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    return _make_integers(name, dtype, shape, limits.get(spec.name), generator)


def _make_integers(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], limit: int | None, generator: np.random.Generator
) -> Array:
    top = min(limit, np.iinfo(dtype).max + 1) if limit is not None else None
    if "token_type" in name or "segment" in name:
        values: Array = np.zeros(shape, np.int64)
    elif "position" in name:
        values = np.broadcast_to(np.arange(shape[-1] if shape else 1), shape) if shape else np.zeros((), np.int64)
    elif "length" in name:
        values = np.full(shape, SEQUENCE_LENGTH)
    elif name == "sr" or re.search(r"sampl\w*_?rate", name):
        values = np.full(shape, min(_SAMPLE_RATE, int(np.iinfo(dtype).max)))
    else:
        values = np.asarray(generator.integers(0, top or _default_limit(name, dtype), shape))
    return np.asarray(values % top if top else values).astype(dtype)


def _default_limit(name: str, dtype: np.dtype[Any]) -> int:
    if dtype.itemsize == 1:
        return int(np.iinfo(dtype).max) + 1
    return 100 if re.search(r"ids?\b|ids?_|token", name) else 2
