"""Count and pick the rows of an activation, without laying out all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.moments.row_layout import Columns, LastAxis, Lookup, Patches, RowLayout
from lowrank_onnx.types import Array

MOST_POSITIONS = 2**48
"""Output positions of one feed beyond which a convolution's padding can't be meant."""


Precision: TypeAlias = type[np.float32] | type[np.float64]

CACHED_BYTES = 2**19
"""Of the patches that are laid out at a time."""


class RowsError(ValueError):
    """An activation can't be read as the rows of a layout; the message goes on from its name."""


def count_rows(layout: RowLayout, shape: tuple[int, ...]) -> int:
    """How many rows an activation of this shape has.

    Raises
    ------
    RowsError : the shape doesn't fit the layout.
    """
    if isinstance(layout, Lookup):
        return math.prod(shape)
    if isinstance(layout, Patches):
        positions = shape[0] * math.prod(_output_sizes(layout, shape))
        if positions > MOST_POSITIONS:
            raise RowsError(f"has {positions} positions once it is padded, expected at most {MOST_POSITIONS}")
        return positions
    axis = -1 if isinstance(layout, LastAxis) or len(shape) == 1 else -2
    if not shape or shape[axis] != layout.in_features:
        raise RowsError(f"has shape {list(shape)}, expected {layout.in_features} on axis {axis}")
    return math.prod(shape) // layout.in_features


def gather_rows(layout: RowLayout, activation: Array, indices: NDArray[np.int64], dtype: Precision) -> Array:
    """Pick rows by number, in the order of the samples and, within one, of the output positions.

    Parameters
    ----------
    activation : of a shape that fits the layout; float16 to float64.
    indices : (n) numbers from 0 to `count_rows` - 1.
    dtype : of the result.

    Returns
    -------
    (groups, n, in), in the layout of `Site.to_matrices`.
    """
    if isinstance(layout, Lookup):
        raise TypeError("one-hot rows are counted, not laid out")
    if isinstance(layout, LastAxis):
        rows = activation.reshape(-1, layout.in_features)
        # To index takes several times as long, and so does to raise for numbers that are too large.
        return rows.take(indices, axis=0, mode="clip").astype(dtype, copy=False)[np.newaxis]
    if isinstance(layout, Columns):
        columns = activation.shape[-1] if activation.ndim > 1 else 1
        stacked = activation.reshape(-1, layout.in_features, columns)
        batch, column = np.divmod(indices, columns)
        return stacked[batch, :, column].astype(dtype, copy=False)[np.newaxis]
    return _gather_patches(layout, activation, indices, dtype)


def _gather_patches(layout: Patches, activation: Array, indices: NDArray[np.int64], dtype: Precision) -> Array:
    """Some rows at a time, which stay in cache, kernel position by kernel position."""
    channels, kernels = activation.shape[1], tuple(itertools.product(*(range(size) for size in layout.kernel)))
    laid_out = activation.shape[0] * math.prod(_padded_sizes(layout, activation.shape))
    often = len(indices) * len(kernels) >= laid_out  # then it takes no more memory than the patches, either
    picked = (_channels_together if often else _channels_apart)(layout, activation, indices, dtype)
    patches: Array = np.empty((len(indices), channels, len(kernels)), dtype)
    step = max(1, CACHED_BYTES // max(patches[:1].nbytes, 1))
    for start in range(0, len(indices), step):
        rows = slice(start, start + step)
        for number, offsets in enumerate(kernels):
            patches[rows, :, number] = picked(rows, offsets)
    by_group: Array = patches.reshape(len(indices), layout.groups, layout.in_features).transpose(1, 0, 2)
    return by_group


Picked: TypeAlias = Callable[[slice, tuple[int, ...]], Array]
"""The channels (n, channels) that some rows have at one position of their kernel."""


def _channels_apart(layout: Patches, activation: Array, indices: NDArray[np.int64], dtype: Precision) -> Picked:
    """They are picked where they are, one by one."""
    samples, channels, *spatial = activation.shape
    flat = activation.reshape(samples, channels, math.prod(spatial))
    sample, *position = np.unravel_index(indices, (samples, *_output_sizes(layout, activation.shape)))
    begins = _leading_pads(layout, activation.shape)

    def picked(rows: slice, offsets: tuple[int, ...]) -> Array:
        where = np.zeros(len(sample[rows]), np.int64)
        inside = np.ones(len(where), np.bool_)
        for axis, size in enumerate(spatial):
            at = position[axis][rows] * layout.strides[axis] + offsets[axis] * layout.dilations[axis] - begins[axis]
            inside &= (at >= 0) & (at < size)
            where = where * size + at
        found: Array = np.zeros((len(where), channels), dtype)
        found[inside] = flat[sample[rows][inside], :, where[inside]]
        return found

    return picked


def _channels_together(layout: Patches, activation: Array, indices: NDArray[np.int64], dtype: Precision) -> Picked:
    """All of the activation is laid out anew, padded, with the channels of a position side by side.

    That takes about as long as to pick them at as many positions.
    """
    samples, channels, *spatial = activation.shape
    begins, outputs = _leading_pads(layout, activation.shape), _output_sizes(layout, activation.shape)
    sizes = _padded_sizes(layout, activation.shape)
    padded: Array = np.zeros((samples, *sizes, channels), dtype)
    inner = tuple(slice(begin, begin + size) for begin, size in zip(begins, spatial, strict=True))
    padded[(slice(None), *inner)] = np.moveaxis(activation, 1, -1)
    flat = padded.reshape(-1, channels)
    first, *position = np.unravel_index(indices, (samples, *outputs))
    for axis, size in enumerate(sizes):
        first = first * size + position[axis] * layout.strides[axis]

    def picked(rows: slice, offsets: tuple[int, ...]) -> Array:
        behind = 0
        for axis, size in enumerate(sizes):
            behind = behind * size + offsets[axis] * layout.dilations[axis]
        return flat.take(first[rows] + behind, axis=0, mode="clip")

    return picked


def _padded_sizes(layout: Patches, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Along each axis how far the padded activation goes: at least to the end of the last patch."""
    ends = (
        (count - 1) * stride + extent
        for count, stride, extent in zip(_output_sizes(layout, shape), layout.strides, _extents(layout), strict=True)
    )
    return tuple(max(b + size, end) for b, size, end in zip(_leading_pads(layout, shape), shape[2:], ends, strict=True))


def _extents(layout: Patches) -> tuple[int, ...]:
    """How many input positions a kernel spans along each axis."""
    return tuple((size - 1) * dilation + 1 for size, dilation in zip(layout.kernel, layout.dilations, strict=True))


def _output_sizes(layout: Patches, shape: tuple[int, ...]) -> tuple[int, ...]:
    spatial, channels = len(layout.kernel), layout.groups * layout.channels
    if len(shape) != spatial + 2 or shape[1] != channels:
        raise RowsError(f"has shape {list(shape)}, expected {spatial + 2} dimensions with {channels} channels")
    if layout.auto_pad != "NOTSET":
        return tuple(-(-size // stride) for size, stride in zip(shape[2:], layout.strides, strict=True))
    sizes = []
    for axis, (size, extent) in enumerate(zip(shape[2:], _extents(layout), strict=True)):
        padded = size + layout.pads[axis] + layout.pads[spatial + axis]
        if padded < extent:
            raise RowsError(f"has shape {list(shape)}, smaller than the kernel's {extent} on axis {axis + 2}")
        sizes.append((padded - extent) // layout.strides[axis] + 1)
    return tuple(sizes)


def _leading_pads(layout: Patches, shape: tuple[int, ...]) -> tuple[int, ...]:
    if layout.auto_pad == "NOTSET":
        return layout.pads[: len(layout.kernel)]
    pads = []
    for size, stride, extent in zip(shape[2:], layout.strides, _extents(layout), strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        # Where the total is odd, SAME_UPPER has the extra zero at the end, SAME_LOWER at the beginning.
        pads.append(total // 2 if layout.auto_pad == "SAME_UPPER" else total - total // 2)
    return tuple(pads)
