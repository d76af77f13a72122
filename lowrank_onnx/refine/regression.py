"""The least-squares problem of one step: as normal equations where it is solved, as rows where solutions are judged."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.lapack import mirror_upper, threads_for_work
from lowrank_onnx.moments.gram import STRIPE, add_upper_gram
from lowrank_onnx.moments.moment import buffer_rows
from lowrank_onnx.types import Array

Doubles = NDArray[np.float64]

KEPT_AT_ONCE = 1024
"""Rows that are gathered at a time for a `RowList`."""


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """``X' M ~ T`` for each group, as means over the rows.

    Attributes
    ----------
    gram : (groups, in, in), X'' X' / n.
    cross : (groups, in, out), X'' T / n.
    energy : (groups, out), the mean squares of T's columns.
    rows : n.
    """

    gram: Doubles
    cross: Doubles
    energy: Doubles
    rows: int

    def of_columns(self, columns: NDArray[np.intp]) -> Regression:
        """The part of some columns of T."""
        return Regression(self.gram, self.cross[:, :, columns], self.energy[:, columns], self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRows:
    """Rows of ``X' M ~ T`` that weren't solved for: so few that products with them are cheaper than their moments.

    Attributes
    ----------
    inputs : (groups, n, in), X'.
    targets : (groups, n, out), T.
    """

    inputs: Array
    targets: Array

    @property
    def rows(self) -> int:
        """How many there are, n."""
        return int(self.inputs.shape[1])

    def of_columns(self, columns: NDArray[np.intp]) -> JudgedRows:
        """The part of some columns of T."""
        return JudgedRows(self.inputs, self.targets[:, :, columns])

    def error(self, product: Array) -> float:
        """``||X' M - T||_F / ||T||_F`` over all groups, for M (groups, in, out); infinite where it overflows."""
        work = self.inputs.size * product.shape[-1]
        with threads_for_work(work), np.errstate(over="ignore", invalid="ignore"):
            missed = self.inputs @ product.astype(self.inputs.dtype, copy=False) - self.targets
        lost, energy = (float(np.sum(np.square(part, dtype=np.float64))) for part in (missed, self.targets))
        if not math.isfinite(lost):
            return math.inf
        return math.sqrt(lost / energy) if energy > 0.0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that is known of one step.

    Attributes
    ----------
    fit : the equations of the feeds that don't validate.
    validate : rows of those that do.
    whole : the equations of all feeds.
    """

    fit: Regression
    validate: JudgedRows
    whole: Regression

    def of_columns(self, columns: NDArray[np.intp]) -> Evidence:
        """The part of some columns of T."""
        return Evidence(self.fit.of_columns(columns), self.validate.of_columns(columns), self.whole.of_columns(columns))


class RowSink(Protocol):
    """What rows are given to, some at a time."""

    @property
    def room(self) -> int:
        """The most rows that the next `add` may bring; at least 1."""

    def add(self, originals: Array, inputs: Array, offsets: Array | None) -> None:
        """Add rows of X and X', (groups, n, in) with n <= `room`, and of D, (groups, n, out); None is 0."""


class RowList:
    """Keeps rows for `JudgedRows`.

    Parameters
    ----------
    weights : (groups, in, out), W of the targets ``T = X W + D``.
    """

    room = KEPT_AT_ONCE

    def __init__(self, weights: Array) -> None:
        self._weights = weights
        self._inputs: list[Array] = []
        self._targets: list[Array] = []

    def add(self, originals: Array, inputs: Array, offsets: Array | None) -> None:  # noqa: D102
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
            targets = originals @ self._weights
        self._inputs.append(inputs)
        self._targets.append(targets if offsets is None else targets + offsets)

    def finish(self) -> JudgedRows:
        """Everything that was added."""
        groups, in_features, out_features = self._weights.shape
        inputs = [np.empty((groups, 0, in_features), self._weights.dtype), *self._inputs]
        targets = [np.empty((groups, 0, out_features), self._weights.dtype), *self._targets]
        return JudgedRows(np.concatenate(inputs, axis=1), np.concatenate(targets, axis=1))


class RegressionSum:
    """Adds up the rows of a `Regression` in bounded memory: a buffer of rows, and float64 sums.

    Parameters
    ----------
    weights : (groups, in, out), W of the targets ``T = X W + D``.
    executor : multiplies in several threads.
    """

    def __init__(self, weights: Array, executor: Executor) -> None:
        groups, in_features, out_features = weights.shape
        self._weights = weights
        self._executor = executor
        self._gram: Doubles = np.zeros((groups, in_features, in_features))
        self._cross: Doubles = np.zeros((groups, in_features, out_features))
        self._energy: Doubles = np.zeros((groups, out_features))
        size = buffer_rows(in_features)
        self._originals: Array = np.empty((groups, size, in_features), weights.dtype)
        self._inputs: Array = np.empty((groups, size, in_features), weights.dtype)
        self._offsets: Array = np.zeros((groups, size, out_features), weights.dtype)
        self._filled = 0
        self._rows = 0

    @property
    def room(self) -> int:  # noqa: D102
        return int(self._inputs.shape[1]) - self._filled

    def add(self, originals: Array, inputs: Array, offsets: Array | None) -> None:  # noqa: D102
        place = slice(self._filled, self._filled + inputs.shape[1])
        self._originals[:, place] = originals
        self._inputs[:, place] = inputs
        self._offsets[:, place] = 0.0 if offsets is None else offsets
        self._filled += inputs.shape[1]
        if not self.room:
            self._flush()

    def so_far(self) -> Regression:
        """The equations of everything added until now; more can be added."""
        self._flush()
        count = max(self._rows, 1)
        gram = self._gram / count
        for matrix in gram:
            mirror_upper(matrix)
        return Regression(gram, self._cross / count, self._energy / count, self._rows)

    def _flush(self) -> None:
        filled = slice(0, self._filled)
        self._rows += self._filled
        for group, W in enumerate(self._weights):
            X, inputs, T = (buffer[group, filled] for buffer in (self._originals, self._inputs, self._offsets))
            _add_product(self._executor, T, X, W)
            self._energy[group] += np.sum(np.square(T, dtype=np.float64), axis=0)
            add_upper_gram(self._gram[group], inputs, self._executor)
            _add_product(self._executor, self._cross[group], inputs.T, T)
        self._filled = 0


def _add_product(executor: Executor, total: Array, A: Array, B: Array) -> None:
    """Add ``A @ B`` to `total`, divided among the threads in the same way on every machine."""

    def add_stripe(start: int) -> None:
        rows = slice(start, start + STRIPE)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
            total[rows] += A[rows] @ B

    list(executor.map(add_stripe, range(0, len(A), STRIPE)))
