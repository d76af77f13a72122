"""Which moments are taken together in one pass over the feeds, so that the pass keeps within its memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.moments.moment import moment_bytes, scratch_bytes
from lowrank_onnx.moments.row_layout import Lookup, RowLayout
from lowrank_onnx.types import numpy_dtype


@dataclass(frozen=True, slots=True)
class Wanted:
    """One moment to be taken.

    Attributes
    ----------
    tensor : the activation that holds the rows.
    layout : how they lie in it.
    dtype : the activation's, which is that of the weight that meets it; "int64" of lookups.
    sites : names of the sites that read it so.
    """

    tensor: str
    layout: RowLayout
    dtype: str
    sites: tuple[str, ...]

    @property
    def buffer_dtype(self) -> type[np.float32] | type[np.float64]:
        """What the rows are collected in: float16 and bfloat16 widen."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def held_bytes(self) -> int:
        """Bytes that its sum holds throughout a pass."""
        if isinstance(self.layout, Lookup):
            return 8 * self.layout.in_features
        itemsize = np.dtype(self.buffer_dtype).itemsize
        return moment_bytes(self.layout.groups, self.layout.in_features, itemsize)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that it needs while rows are added to it."""
        if isinstance(self.layout, Lookup):
            return 8 * self.layout.in_features
        return scratch_bytes(self.layout.groups, self.layout.in_features)


def plan_passes(
    wanted: Iterable[Wanted], elements: Mapping[str, int], max_bytes: int
) -> tuple[tuple[tuple[Wanted, ...], ...], dict[Wanted, str]]:
    """Divide moments into passes, in order, each as full as `max_bytes` allows.

    Parameters
    ----------
    wanted : the moments; those of one tensor are brought together.
    elements : for each tensor, its number of elements on the largest feed.
    max_bytes : of the sums, the activations and the workspace of one pass together.

    Returns
    -------
    The passes, and the reason for each moment that doesn't even fit alone.
    """
    passes: list[tuple[Wanted, ...]] = []
    reasons: dict[Wanted, str] = {}
    current: list[Wanted] = []
    for item in _by_tensor(wanted):
        alone = _pass_bytes([item], elements)
        if alone > max_bytes:
            reasons[item] = _too_large(item, elements[item.tensor], alone, max_bytes)
            continue
        if current and _pass_bytes([*current, item], elements) > max_bytes:
            passes.append(tuple(current))
            current = []
        current.append(item)
    if current:
        passes.append(tuple(current))
    return tuple(passes), reasons


def _by_tensor(wanted: Iterable[Wanted]) -> list[Wanted]:
    tensors: dict[str, list[Wanted]] = {}
    for item in wanted:
        tensors.setdefault(item.tensor, []).append(item)
    return [item for items in tensors.values() for item in items]


def _pass_bytes(items: Sequence[Wanted], elements: Mapping[str, int]) -> int:
    tensors = {item.tensor: elements[item.tensor] * numpy_dtype(item.dtype).itemsize for item in items}
    held = sum(item.held_bytes for item in items)
    return held + sum(tensors.values()) + max(item.scratch_bytes for item in items)


def _too_large(item: Wanted, elements: int, needed: int, max_bytes: int) -> str:
    groups, size = item.layout.groups, item.layout.in_features
    return (
        f"its second moment of {groups} x {size} x {size}, with an activation of {elements} elements, "
        f"takes {needed} bytes to observe, more than the {max_bytes} allowed"
    )
