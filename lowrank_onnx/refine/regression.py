"""The least-squares problem of one step as its normal equations: added up from rows, asked for the error of factors."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.lapack import mirror_upper, threads_for_work
from lowrank_onnx.moments.gram import STRIPE, add_upper_gram
from lowrank_onnx.moments.moment import buffer_rows
from lowrank_onnx.types import Array

Doubles = NDArray[np.float64]


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

    def error(self, product: Array) -> float:
        """``||X' M - T||_F / ||T||_F`` over all groups, for M (groups, in, out)."""
        M = product.astype(np.float64)
        with threads_for_work(self.gram.size * M.shape[-1]):
            missed = self.energy.sum() + np.sum((self.gram @ M - 2.0 * self.cross) * M)
        energy = float(self.energy.sum())
        return float(np.sqrt(max(float(missed), 0.0) / energy)) if energy > 0.0 else 0.0


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
    def dtype(self) -> type[np.float32] | type[np.float64]:
        """What rows are collected in."""
        return np.float64 if self._inputs.dtype == np.float64 else np.float32

    @property
    def room(self) -> int:
        """The most rows that the next `add` may bring; at least 1."""
        return int(self._inputs.shape[1]) - self._filled

    def add(self, originals: Array, inputs: Array, offsets: Array | None) -> None:
        """Add rows of X and X', (groups, n, in) with n <= `room`, and of D, (groups, n, out); None is 0."""
        place = slice(self._filled, self._filled + inputs.shape[1])
        self._originals[:, place] = originals
        self._inputs[:, place] = inputs
        self._offsets[:, place] = 0.0 if offsets is None else offsets
        self._filled += inputs.shape[1]
        if not self.room:
            self._flush()

    def finish(self) -> Regression:
        """The equations of everything added; the sum can't be used any more."""
        self._flush()
        del self._originals, self._inputs, self._offsets
        count = max(self._rows, 1)
        for matrix in self._gram:
            mirror_upper(matrix)
        return Regression(self._gram / count, self._cross / count, self._energy / count, self._rows)

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
