"""What is known of one step: normal equations, or the rows themselves where these are few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lowrank_onnx.linalg.lapack import threads_for_work
from lowrank_onnx.refine.regression import Regression, relative_error
from lowrank_onnx.types import Array


@dataclass(frozen=True, slots=True, eq=False)
class KeptRows:
    """Rows of ``X' M ~ T`` themselves: so few that products with them are cheaper than with their moments.

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

    @property
    def is_usable(self) -> bool:
        """As that of `Regression`."""
        finite = bool(np.isfinite(self.inputs).all() and np.isfinite(self.targets).all())
        return self.rows > 0 and finite and all(0.0 < scale < math.inf for scale in self.scales)

    @property
    def scales(self) -> tuple[float, ...]:
        """As those of `Regression`."""
        count, features = self.inputs.shape[1:]
        with np.errstate(over="ignore"):
            return tuple(float(np.vdot(rows, rows)) / max(count * features, 1) for rows in self.inputs)

    def of_columns(self, columns: NDArray[np.intp]) -> KeptRows:
        """The part of some columns of T."""
        return KeptRows(self.inputs, self.targets[:, :, columns])

    def with_rows_of(self, other: KeptRows) -> KeptRows:
        """The rows of both."""
        pairs = ((self.inputs, other.inputs), (self.targets, other.targets))
        inputs, targets = (np.concatenate(pair, axis=1) for pair in pairs)
        return KeptRows(inputs, targets)

    def error(self, factors: Sequence[Array]) -> float:
        """As that of `Regression`."""
        work = self.inputs.size * factors[0].shape[-1]
        with threads_for_work(work), np.errstate(over="ignore", invalid="ignore"):
            found = self.inputs
            for factor in factors:
                found = found @ factor.astype(found.dtype, copy=False)
            found = found - self.targets
        lost, energy = (float(np.sum(np.square(part, dtype=np.float64))) for part in (found, self.targets))
        return relative_error(lost, energy)


class RowList:
    """Keeps rows for `KeptRows`.

    Parameters
    ----------
    shape : (groups, in, out).
    dtype : of the rows.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: DTypeLike) -> None:
        groups, in_features, out_features = shape
        self._inputs: list[Array] = [np.empty((groups, 0, in_features), dtype)]
        self._targets: list[Array] = [np.empty((groups, 0, out_features), dtype)]

    def add(self, inputs: Array, targets: Array) -> None:
        """Keep rows of X', (groups, n, in), and of T, (groups, n, out)."""
        self._inputs.append(inputs)
        self._targets.append(targets)

    def finish(self) -> KeptRows:
        """Everything that was kept."""
        return KeptRows(np.concatenate(self._inputs, axis=1), np.concatenate(self._targets, axis=1))


Known: TypeAlias = Regression | KeptRows
"""The problem of some feeds."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that is known of one step.

    Attributes
    ----------
    fit, validate : the problem of the feeds that don't validate, and of those that do; both are of one kind.
    judge : what solutions of `fit` are judged by: `validate`, or its rows.
    """

    fit: Known
    validate: Known
    judge: Known

    @property
    def rows(self) -> int:
        """Of all feeds."""
        return self.fit.rows + self.validate.rows

    def whole(self) -> Known:
        """The problem of all feeds, made anew each time."""
        if isinstance(self.fit, Regression) and isinstance(self.validate, Regression):
            return self.fit.with_rows_of(self.validate)
        if isinstance(self.fit, KeptRows) and isinstance(self.validate, KeptRows):
            return self.fit.with_rows_of(self.validate)
        raise TypeError("equations and rows don't add up")

    def of_columns(self, columns: NDArray[np.intp]) -> Evidence:
        """The part of some columns of T."""
        fit, validate = self.fit.of_columns(columns), self.validate.of_columns(columns)
        return Evidence(fit, validate, validate if self.judge is self.validate else self.judge.of_columns(columns))
