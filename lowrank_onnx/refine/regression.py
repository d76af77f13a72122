"""The least-squares problem of one step as normal equations, added up over its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lowrank_onnx.linalg.lapack import mirror_upper, threads_for_work
from lowrank_onnx.moments.gram import STRIPE, add_upper_gram
from lowrank_onnx.types import Array

Doubles = NDArray[np.float64]

BUFFERED_ROWS = 1024
"""Rows that are added up at a time, or as many as there are features: so that multiplying outweighs adding."""

MULTIPLIED_APART = 768
"""Up to so many features rows are multiplied by the thread that laid them out: so few that a product isn't divided."""


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

    @property
    def is_usable(self) -> bool:
        """Whether there are rows, all groups have inputs that aren't all 0, and nothing overflowed."""
        finite = all(np.isfinite(part).all() for part in (self.gram, self.cross, self.energy))
        return self.rows > 0 and finite and all(scale > 0.0 for scale in self.scales)

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each group the mean eigenvalue of X'' X' / n."""
        return tuple(float(np.trace(gram)) / len(gram) for gram in self.gram)

    def of_columns(self, columns: NDArray[np.intp]) -> Regression:
        """The part of some columns of T."""
        return Regression(self.gram, self.cross[:, :, columns], self.energy[:, columns], self.rows)

    def with_rows_of(self, other: Regression) -> Regression:
        """The equations of the rows of both."""
        rows = self.rows + other.rows
        own, others = (one.rows / max(rows, 1) for one in (self, other))
        return Regression(
            own * self.gram + others * other.gram,
            own * self.cross + others * other.cross,
            own * self.energy + others * other.energy,
            rows,
        )

    def error(self, factors: Sequence[Array]) -> float:
        """``||X' M - T||_F / ||T||_F`` over all groups; infinite where it overflows.

        Parameters
        ----------
        factors : M (groups, in, out), or L (groups, in, r) and R (groups, r, out) whose product it is.
        """
        first, *others = (factor.astype(np.float64, copy=False) for factor in factors)
        work = self.gram.shape[1] * first.size
        with threads_for_work(work), np.errstate(over="ignore", invalid="ignore"):
            image, target = self.gram @ first, self.cross
            for right in others:  # ||X' L R||**2 = <L'X'' X' L, R R'>
                target = target @ right.transpose(0, 2, 1)
                image = image @ (right @ right.transpose(0, 2, 1))
            lost = float(np.vdot(first, image) - 2.0 * np.vdot(first, target) + np.sum(self.energy))
        return relative_error(lost, float(np.sum(self.energy)))


def relative_error(lost: float, energy: float) -> float:
    """The root of the energy that is lost over all of it; what rounding makes of none may be below 0."""
    if not math.isfinite(lost):
        return math.inf
    return math.sqrt(max(lost, 0.0) / energy) if energy > 0.0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Summand:
    """Some rows of a `Regression`, as a `RegressionSum` takes them: as they are, or multiplied.

    Attributes
    ----------
    inputs, targets : rows of X', (groups, n, in), and of T or what it is a product of, (groups, n, out).
    products : what they add to the sums of a `RegressionSum`; or None.
    """

    inputs: Array
    targets: Array
    products: tuple[Array, Array, Array] | None

    @property
    def is_finite(self) -> bool:
        """Whether the rows are finite, and the products too, where they are there."""
        if self.products is None:
            return are_finite(self.inputs) and are_finite(self.targets)
        gram, _, energy = self.products
        return are_finite(np.diagonal(gram, axis1=1, axis2=2)) and are_finite(energy)


def are_finite(numbers: Array) -> bool:
    """Whether all numbers are finite; they are looked at one by one only where their sum isn't."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(numbers)) or np.isfinite(numbers).all())


class RegressionSum:
    """Adds up the rows of a `Regression` in bounded memory: a buffer of rows, and float64 sums.

    Parameters
    ----------
    shape : (groups, in, out).
    dtype : of the rows.
    executor : multiplies in several threads.
    through : (groups, out, m), a matrix that the rows of T that are added have yet to be multiplied by, which is done
        once for all of them: the equations are those of T through it, with m outputs.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: DTypeLike, executor: Executor, through: Array | None = None
    ) -> None:
        groups, in_features, out_features = shape
        self._executor, self._through = executor, through
        self._gram: Doubles = np.zeros((groups, in_features, in_features))
        self._cross: Doubles = np.zeros((groups, in_features, out_features))
        # Of T the squares of its columns, or all its products, as the squares through a matrix need them.
        self._energy: Doubles = np.zeros((groups, out_features) if through is None else (groups, *[out_features] * 2))
        self._apart = in_features <= MULTIPLIED_APART
        size = 0 if self._apart else max(in_features, BUFFERED_ROWS)
        self._inputs: Array = np.empty((groups, size, in_features), dtype)
        self._targets: Array = np.empty((groups, size, out_features), dtype)
        self._filled = 0
        self._rows = 0

    def summand(self, inputs: Array, targets: Array) -> Summand:
        """Make ready to be added rows of X', (groups, n, in), and of T, (groups, n, out): in any thread."""
        if not self._apart:
            return Summand(inputs, targets, None)
        return Summand(inputs, targets, _multiplied(inputs, targets, squares=self._through is None))

    def add(self, summand: Summand) -> None:
        """Add rows that were made ready."""
        inputs, targets = summand.inputs, summand.targets
        if summand.products is not None:
            for total, part in zip((self._gram, self._cross, self._energy), summand.products, strict=True):
                total += part
            self._rows += inputs.shape[1]
            return
        size, start = self._inputs.shape[1], 0
        while start < inputs.shape[1]:
            taken = slice(start, start + size - self._filled)
            place = slice(self._filled, self._filled + inputs[:, taken].shape[1])
            self._inputs[:, place], self._targets[:, place] = inputs[:, taken], targets[:, taken]
            self._filled, start = place.stop, taken.stop
            if self._filled == size:
                self._flush()

    def finish(self) -> Regression:
        """The equations of everything added; nothing more can be."""
        self._flush()
        for sums in (self._gram, self._cross, self._energy):
            sums *= 1.0 / max(self._rows, 1)
        for matrix in self._gram:
            mirror_upper(matrix)
        cross, energy = self._cross, self._energy
        if self._through is not None:
            for matrix in energy:
                mirror_upper(matrix)
            cross, energy = _passed_on(cross, energy, self._through.astype(np.float64, copy=False))
        return Regression(self._gram, cross, energy, self._rows)

    def _flush(self) -> None:
        filled = slice(0, self._filled)
        self._rows += self._filled
        for group, (gram, cross) in enumerate(zip(self._gram, self._cross, strict=True)):
            inputs, targets = self._inputs[group, filled], self._targets[group, filled]
            if self._through is None:
                self._energy[group] += _squares(targets)
            else:
                add_upper_gram(self._energy[group], targets, self._executor)
            add_upper_gram(gram, inputs, self._executor)
            _add_product(self._executor, cross, inputs.T, targets)
        self._filled = 0


def _multiplied(inputs: Array, targets: Array, *, squares: bool) -> tuple[Array, Array, Array]:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
        cross = inputs.transpose(0, 2, 1) @ targets
    energy = np.stack([_squares(rows) for rows in targets]) if squares else _upper_grams(targets)
    return _upper_grams(inputs), cross, energy


def _upper_grams(matrices: Array) -> Array:
    groups, _, features = matrices.shape
    grams = np.zeros((groups, features, features), matrices.dtype)
    for upper, rows in zip(grams, matrices, strict=True):
        add_upper_gram(upper, rows)
    return grams


def _passed_on(cross: Doubles, products: Doubles, through: Doubles) -> tuple[Doubles, Doubles]:
    """``X'' T`` and the squares of T's columns for ``T = Z through``, from ``X'' Z`` and ``Z' Z``."""
    with threads_for_work(through.size * cross.shape[1]), np.errstate(over="ignore", invalid="ignore"):
        energy: Doubles = np.sum(through * (products @ through), axis=1)
        return cross @ through, np.maximum(energy, 0.0)  # rounding may leave less than nothing of very little


def _squares(rows: Array) -> Array:
    """The sum of the squares of each column."""
    squares: Array = np.einsum("ij,ij->j", rows, rows)
    return squares


def _add_product(executor: Executor, total: Array, A: Array, B: Array) -> None:
    """Add ``A @ B`` to `total`, its longer side divided among the threads in the same way on every machine."""

    def add_stripe(start: int) -> None:
        stripe = slice(start, start + STRIPE)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
            if tall:
                total[stripe] += A[stripe] @ B
            else:
                total[:, stripe] += A @ B[:, stripe]

    tall = total.shape[0] >= total.shape[1]
    list(executor.map(add_stripe, range(0, max(total.shape), STRIPE)))
