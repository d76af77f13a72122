"""Rows of what the original computes, for the walk to solve for: the original runs ahead of it, once over all feeds.

Of a site's output Y = X W + b only the rows that are solved for are kept: X itself, and a product with W, are needed
where Y isn't what W alone makes of X but for stored constants.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.moments.gather_rows import Precision, RowsError, count_rows, gather_rows
from lowrank_onnx.moments.row_layout import RowLayout
from lowrank_onnx.moments.row_sampling import sample_rows
from lowrank_onnx.refine.pieces import Track, Waiting
from lowrank_onnx.types import Array


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A value of the original of which rows are wanted.

    Attributes
    ----------
    name, layout : which, and how the rows lie in it.
    scale, bias : what is kept is ``(rows - bias) / scale``; the bias is of shape (groups, 1, features), or 0.
    """

    name: str
    layout: RowLayout
    scale: float = 1.0
    bias: Array | float = 0.0

    def rows(self, value: Array, indices: NDArray[np.int64], dtype: Precision) -> Array:
        """Some rows, (groups, n, features)."""
        found = gather_rows(self.layout, value, indices, dtype)
        if not isinstance(self.bias, float) or self.bias != 0.0:
            found -= np.asarray(self.bias, dtype)
        if self.scale != 1.0:
            found /= dtype(self.scale)
        return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of the original for one step.

    Attributes
    ----------
    first, last : places in the order of the nodes between which its sites run.
    readings : values with as many rows each.
    dtype : of the rows.
    rows : how many of all feeds together.
    nbytes : of them, and of the values that one run of the original returns for them.
    name : of what the step reads: the same rows are taken of steps with the same names.
    """

    first: int
    last: int
    readings: tuple[Reading, ...]
    dtype: Precision
    rows: int
    nbytes: int
    name: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps whose rows are kept at once, and the place in the order up to which they need the original to run."""

    steps: frozenset[int]
    cut: int


def plan_segments(wanted: Mapping[int, Wanted], most_bytes: int) -> tuple[Segment, ...]:
    """As many steps at a time as `most_bytes` have room for, at least one, and with it all whose sites run before its
    last one does.
    """
    segments: list[Segment] = []
    steps: list[int] = []
    cut = held = 0
    for number, one in sorted(wanted.items(), key=lambda item: item[1].first):
        if steps and one.first >= cut and held + one.nbytes > most_bytes:
            segments.append(Segment(frozenset(steps), cut))
            steps, held = [], 0
        steps.append(number)
        held += one.nbytes
        cut = max(cut, one.last + 1)
    return (*segments, Segment(frozenset(steps), cut)) if steps else ()


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What was read of one feed for one step: rows of each reading, their numbers, and of how many they are."""

    count: int
    indices: NDArray[np.int64]
    rows: tuple[Array, ...]


class Ahead:
    """Runs the original as far as the rows of the next steps need it.

    Parameters
    ----------
    track, waiting : the original, and where rows wait.
    wanted : of each step that is solved, by its number.
    most_bytes : of rows at once, where a single step doesn't take more.
    seed : of the rows that are picked.
    """

    def __init__(
        self, track: Track, waiting: Waiting, wanted: Mapping[int, Wanted], most_bytes: int, seed: int
    ) -> None:
        self._track, self._waiting, self._wanted, self._seed = track, waiting, wanted, seed
        self._segments = list(plan_segments(wanted, most_bytes))
        self._indices: dict[tuple[int, int], tuple[int, NDArray[np.int64]]] = {}
        self._failed: dict[int, str] = {}
        self._dropped: set[int] = set()

    def run_to(self, step: int) -> None:
        """Have the rows of a step, if it wasn't dropped."""
        while any(step in segment.steps for segment in self._segments):
            self._run(self._segments.pop(0))

    def _run(self, segment: Segment) -> None:
        steps, feeds = sorted(segment.steps), len(self._waiting.feeds)
        names = [reading.name for step in steps for reading in self._wanted[step].readings]

        def receive(feed: int, values: Mapping[str, Array]) -> Callable[[], None]:
            found = {step: self._read(step, feed, feeds, values) for step in steps}
            return partial(self._keep, feed, found)

        self._track.run_to(segment.cut, tuple(dict.fromkeys(names)), receive)
        for step in segment.steps & self._dropped:
            self._give_up(step)

    def _read(self, step: int, feed: int, feeds: int, values: Mapping[str, Array]) -> _Read | str:
        """What is wanted of one of so many feeds for a step; or why its values haven't these rows."""
        wanted = self._wanted[step]
        try:
            counts = {count_rows(reading.layout, values[reading.name].shape) for reading in wanted.readings}
        except RowsError as error:
            return str(error)
        if len(counts) > 1:
            shapes = " and ".join(str(list(values[reading.name].shape)) for reading in wanted.readings)
            return f"goes with values of shapes {shapes}, which have different rows"
        count = counts.pop()
        indices = sample_rows(count, math.ceil(wanted.rows / feeds), _row_seed(self._seed, wanted.name, feed))
        rows = (reading.rows(values[reading.name], indices, wanted.dtype) for reading in wanted.readings)
        return _Read(count, indices, tuple(rows))

    def _keep(self, feed: int, found: Mapping[int, _Read | str]) -> None:
        for step, read in found.items():
            if isinstance(read, str):
                self._failed[step] = read
                continue
            for reading, rows in zip(self._wanted[step].readings, read.rows, strict=True):
                self._waiting.put(feed, "rows", _key(step, reading), rows)
            self._indices[step, feed] = read.count, read.indices

    def rows(self, step: int, feed: int, count: int) -> tuple[NDArray[np.int64], list[Array]]:
        """The numbers of the rows of a feed, and for each reading of the step the rows, (groups, n, features).

        Parameters
        ----------
        count : how many there are to choose from in the compressed model.

        Raises
        ------
        RowsError : the values haven't these rows; the message goes on from the name of what the step reads.
        """
        if step in self._failed:
            raise RowsError(self._failed[step])
        original, indices = self._indices[step, feed]
        if original != count:
            raise RowsError(f"has {original} rows in the original and {count} in the compressed model")
        kept = [self._waiting.get(feed, "rows", _key(step, reading)) for reading in self._wanted[step].readings]
        return indices, kept

    def count(self, step: int, feed: int) -> int:
        """How many rows of a feed there are for a step; 0 where its values haven't these."""
        return 0 if step in self._failed else len(self._indices[step, feed][1])

    def dtype(self, step: int) -> Precision:
        """Of the rows of a step."""
        return self._wanted[step].dtype

    def drop(self, step: int) -> None:
        """Give up the rows of a step, now or when the original has run for the steps beside it."""
        if step in self._wanted:
            self._dropped.add(step)
            self._give_up(step)

    def _give_up(self, step: int) -> None:
        for feed in self._waiting.feeds:
            self._waiting.give_up(feed, "rows", [_key(step, reading) for reading in self._wanted[step].readings])
            self._indices.pop((step, feed), None)


def _key(step: int, reading: Reading) -> str:
    return f"{reading.name} (step {step})"


def _row_seed(seed: int, name: str, feed: int) -> int:
    text = f"{seed}\0{name}\0{feed}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
