"""The rows of a step, laid out and added up: what the feeds say that are solved for, and those that validate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.in_order import in_order
from lowrank_onnx.moments.gather_rows import RowsError, count_rows, gather_rows
from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.refine.ahead import Reading
from lowrank_onnx.refine.known import Evidence, KeptRows, RowList
from lowrank_onnx.refine.models import Models
from lowrank_onnx.refine.readings import StepReadings
from lowrank_onnx.refine.regression import Regression, RegressionSum, Summand, are_finite
from lowrank_onnx.refine.steps import MAX_EQUATION_BYTES, Step, are_few, solved_bytes, takes_rows
from lowrank_onnx.refine.target import Target
from lowrank_onnx.types import Array, MatrixShape

GATHERED_BYTES, PARTS_AHEAD = 2**23, 4
"""Of rows that a thread lays out at once, and how often that is done before they are added up."""

Rows: TypeAlias = tuple[Array, Array]
"""Rows of X' and of T, or of what T is a product of: (groups, n, in) and (groups, n, out)."""


def find_evidence(
    models: Models, number: int, step: Step, targets: Sequence[Target], validates: Callable[[int], bool]
) -> Evidence:
    """What is known of a step when both models have run up to it.

    Parameters
    ----------
    models, number, step, targets : the step, its number, and a target for each member.
    validates : whether a feed of that number validates.

    Raises
    ------
    RowsError : the values haven't these rows; the message goes on from the name of what the step reads.
    """
    source = _Source(models, number, step, targets)
    feeds = models.waiting.feeds
    fitting, validating = ([feed for feed in feeds if validates(feed) is judges] for judges in (False, True))
    _, in_features, out_features = source.shape
    if are_few(source.count(feeds), in_features, out_features) and source.takes_rows:
        validate = source.keep(validating)
        return Evidence(source.keep(fitting), validate, validate)
    widest = max(target.W.shape[-1] for target in targets)
    needed = solved_bytes(MatrixShape(source.shape[0], in_features, widest), None)
    if needed > MAX_EQUATION_BYTES:  # more rows than were seen on the first feed
        rows = source.count(feeds)
        raise RowsError(f"has {rows} rows, whose equations take {needed} bytes, more than {MAX_EQUATION_BYTES}")
    fit, kept = source.add_up(fitting), RowList(source.shape, source.dtype)
    if source.count(validating) < in_features:
        return Evidence(fit, source.add_up(validating, kept.add), kept.finish())
    equations = source.add_up(validating)
    return Evidence(fit, equations, equations)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the rows of a step come from."""

    models: Models
    number: int
    step: Step
    targets: Sequence[Target]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, in, out) of all members side by side."""
        groups, in_features, _ = self.targets[0].W.shape
        return groups, in_features, sum(target.W.shape[-1] for target in self.targets)

    @property
    def laid_out(self) -> tuple[int, int, int]:
        """(groups, in, out) of the rows: those of T, or of X, which are multiplied by W afterwards."""
        groups, in_features, out_features = self.shape
        return groups, in_features, in_features if self.readings.afterwards else out_features

    @property
    def readings(self) -> StepReadings:
        """What was read of the original."""
        return self.models.readings[self.number]

    @property
    def carried(self) -> Reading | None:
        """The other term of the sum that the only site writes into, if its target says so."""
        return None if self.targets[0].carried is None else self.readings.carried

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the rows."""
        return self.targets[0].W.dtype

    @property
    def takes_rows(self) -> bool:
        """Whether all members can be solved from few rows, without their equations."""
        return all(takes_rows(member.replaced.form) for member in self.step.members)

    def count(self, feeds: Iterable[int]) -> int:
        """The number of rows of some feeds."""
        return sum(self.models.ahead.count(self.number, feed) for feed in feeds)

    def keep(self, feeds: Sequence[int]) -> KeptRows:
        """The rows of some feeds."""
        kept = RowList(self.shape, self.dtype)
        for lay_out in self._parts(feeds):
            inputs, targets = lay_out()
            _check_finite(inputs, targets)
            kept.add(inputs, self._targets_of(targets))
        return kept.finish()

    def add_up(self, feeds: Sequence[int], receive: Callable[[Array, Array], None] | None = None) -> Regression:
        """Their equations; `receive` is given the rows as well."""
        through = np.concatenate([target.W for target in self.targets], axis=-1) if self.readings.afterwards else None
        with gram_threads() as executor:
            total = RegressionSum(self.laid_out, self.dtype, executor, through)

            def ready(lay_out: Callable[[], Rows]) -> Summand:
                inputs, targets = lay_out()
                summand = total.summand(inputs, targets)
                if not summand.is_finite:
                    _check_finite(inputs, targets)
                return summand

            for summand in in_order(executor, (partial(ready, part) for part in self._parts(feeds)), PARTS_AHEAD):
                total.add(summand)
                if receive is not None:
                    receive(summand.inputs, self._targets_of(summand.targets))
            return total.finish()

    def _targets_of(self, laid_out: Array) -> Array:
        """Rows of T from rows as they are laid out."""
        return self.readings.multiplied([laid_out], self.targets) if self.readings.afterwards else laid_out

    def _parts(self, feeds: Sequence[int]) -> Iterator[Callable[[], Rows]]:
        """What lays out their rows, so many at a time that there is work for all threads, and room for it."""
        room = GATHERED_BYTES // (self.shape[0] * sum(self.laid_out[1:]) * self.dtype.itemsize)
        most = max(1, min(room, self.count(feeds) // PARTS_AHEAD))
        together: list[Callable[[], Rows]] = []
        size = 0
        for rows, lay_out in self._pieces(feeds, most):
            if size + rows > most and together:
                yield partial(_concatenated, together)
                together, size = [], 0
            together.append(lay_out)
            size += rows
        if together:
            yield partial(_concatenated, together)

    def _pieces(self, feeds: Iterable[int], most: int) -> Iterator[tuple[int, Callable[[], Rows]]]:
        """Of each feed at most `most` rows at a time: how many there are, and what lays them out."""
        models, layout = self.models, self.step.layout
        carried = self.carried
        for feed in feeds:
            inputs = models.compressed.value(feed, self.step.value)
            count = count_rows(layout, inputs.shape)
            indices, kept = models.ahead.rows(self.number, feed, count)
            term = None if carried is None else models.compressed.value(feed, carried.name)
            if carried is not None and term is not None and count_rows(carried.layout, term.shape) != count:
                raise RowsError(f"doesn't go with the term {carried.name!r} of shape {list(term.shape)}")
            for start in range(0, len(indices), most):
                place = slice(start, start + most)
                part = indices[place]
                yield len(part), partial(self._lay_out, inputs, term, part, [one[:, place] for one in kept])

    def _lay_out(self, inputs: Array, term: Array | None, indices: NDArray[np.int64], kept: Sequence[Array]) -> Rows:
        """Some rows of one feed, from X' and from what was kept of the original; the term is what the other carries."""
        readings, dtype = self.readings, self.models.ahead.dtype(self.number)
        rows = gather_rows(self.step.layout, inputs, indices, dtype)
        if self.readings.afterwards:
            return rows, kept[0]
        wanted = readings.multiplied(kept[: len(readings.products)], self.targets)
        if readings.carried is not None and term is not None:
            wanted = wanted + (kept[-1] - gather_rows(readings.carried.layout, term, indices, dtype))
        return rows, wanted


def _concatenated(pieces: Sequence[Callable[[], Rows]]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]()
    inputs, targets = zip(*(piece() for piece in pieces), strict=True)
    return np.concatenate(inputs, axis=1), np.concatenate(targets, axis=1)


def _check_finite(inputs: Array, targets: Array) -> None:
    if not (are_finite(inputs) and are_finite(targets)):
        raise RowsError("holds NaN or infinity on some feeds")
