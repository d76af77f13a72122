"""The second moment of a site's input, what it says of itself, and the sum that it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from lowrank_onnx.linalg.lapack import mirror_upper
from lowrank_onnx.moments.gram import add_upper_gram
from lowrank_onnx.types import Array

ADVISED_ROWS_PER_FEATURE = 4
"""With n independent Gaussian rows of d features, the relative spectral error of a second moment is about
2 sqrt(d/n) + d/n (Koltchinskii and Lounici, arXiv 1405.2468): 3 at n = d, 1.25 at n = 4 d."""

BUFFERED_ROWS = 256
"""Rows of each group that are collected at least before they are multiplied."""

_SAFE_PEAKS = (1e-12, 1e12)
"""Largest magnitudes of rows between which float32 squares and their sums neither vanish nor overflow."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The uncentred second moment of the rows x of a site that computes ``y = x @ W``, a mean over the rows.

    It is normalised: X'X / n and not X'X, so that sites seen at different numbers of positions, and samples of the
    positions instead of all of them, are on one scale. With E = W - L R the mean squared error of one row of y is
    ``trace(E' second_moment E)``; times `positions` it is ||X E||_F^2 over all the feeds.

    Attributes
    ----------
    second_moment : (groups, in, in) float64, symmetric, and positive semidefinite up to rounding; the mean of x' x in
        the row layout of `Site.to_matrices`. Where rows were sampled, every feed's sample stands for all of its rows,
        so that this estimates the mean over all of them without bias. Of one-hot rows, that is of lookups in a table,
        only the diagonal, (groups, in).
    mean : (groups, in) float64, the mean of x, with the same weights.
    rows : rows per group that went in. Fewer than `in` make the moment singular.
    positions : rows per group that there were in the feeds that gave any; equal to `rows` where nothing was sampled.
    mirrored : of a weight that other sites apply transposed, the moment of the rows that those multiply, (groups, out,
        out): with it the weight has one on each side. Else None.
    """

    second_moment: Array
    mean: Array
    rows: int
    positions: int
    mirrored: Moment | None = None

    @property
    def diagonal(self) -> bool:
        """Whether it is that of one-hot rows."""
        return self.second_moment.ndim == 2

    @property
    def in_features(self) -> int:
        """Columns of a row."""
        return int(self.second_moment.shape[-1])


class MomentSum:
    """Adds up rows of one layout in bounded memory: a buffer of float32 (or float64) rows, and float64 sums.

    Parameters
    ----------
    groups, in_features : of the rows.
    dtype : of the buffer, and of the products within it; the sums are float64.
    executor : multiplies; None does it in the calling thread.
    """

    def __init__(
        self,
        groups: int,
        in_features: int,
        dtype: type[np.float32] | type[np.float64],
        executor: Executor | None = None,
    ) -> None:
        self._executor = executor
        self._second: NDArray[np.float64] = np.zeros((groups, in_features, in_features))
        self._mean: NDArray[np.float64] = np.zeros((groups, in_features))
        self._buffer: Array = np.empty((groups, buffer_rows(in_features), in_features), dtype)
        self._filled = 0
        self._rows = 0
        self._positions = 0

    @property
    def rows(self) -> int:
        """Rows per group that went in."""
        return self._rows

    @property
    def room(self) -> int:
        """The most rows that the next `add` may bring; at least 1."""
        return int(self._buffer.shape[1]) - self._filled

    def add(self, rows: Array, weight: float) -> None:
        """Add `rows` (groups, n, in), n <= `room`, each of which stands for `weight` rows."""
        count = rows.shape[1]
        target = self._buffer[:, self._filled : self._filled + count]
        target[...] = rows
        with np.errstate(over="ignore"):  # an infinity stays, and shows in the moment
            self._mean += rows.sum(axis=1, dtype=np.float64) * weight
            if weight != 1.0:
                target *= math.sqrt(weight)
        self._filled += count
        self._rows += count
        if not self.room:
            self._flush()

    def close_feed(self, positions: int) -> None:
        """Say that the rows added since the last call stood for `positions` rows of one feed."""
        self._positions += positions

    def finish(self) -> Moment:
        """The moment of everything added, which needs at least one row; the sum can't be used any more.

        Where rows are so large that their squares overflow float64, the moment isn't finite.
        """
        self._flush()
        del self._buffer
        for matrix in self._second:
            mirror_upper(matrix)
        self._second /= self._positions
        self._mean /= self._positions
        return Moment(self._second, self._mean, self._rows, self._positions)

    def _flush(self) -> None:
        filled = self._buffer[:, : self._filled]
        self._filled = 0
        peak = max(float(filled.max(initial=0.0)), -float(filled.min(initial=0.0)))
        safe = _SAFE_PEAKS[0] < peak < _SAFE_PEAKS[1]
        for second, block in zip(self._second, filled, strict=True):
            add_upper_gram(second, block if safe else block.astype(np.float64, copy=False), self._executor)


def buffer_rows(in_features: int) -> int:
    """Rows of each group in the buffer of a `MomentSum`: enough that multiplying outweighs adding up."""
    return max(in_features, BUFFERED_ROWS)


def moment_bytes(groups: int, in_features: int, itemsize: int) -> int:
    """Bytes that a `MomentSum` holds while it is added to; `itemsize` is that of the buffer."""
    buffered = groups * buffer_rows(in_features) * in_features * itemsize
    return groups * (in_features + 1) * in_features * 8 + buffered


def scratch_bytes(groups: int, in_features: int) -> int:
    """Bytes that adding to a `MomentSum` needs for a moment: gathered rows, and a product of one group in float64."""
    return (groups + 1) * buffer_rows(in_features) * in_features * 8 + in_features * in_features * 8


def merge_moments(moments: Sequence[Moment]) -> Moment:
    """The moment of all rows of several sites together, for a weight that they share; weighted by positions.

    Where rows are looked up and multiplied, too, the diagonal of the lookups is written out.

    Raises
    ------
    ValueError : there is none, or they are of different shapes.
    """
    if not moments:
        raise ValueError("no moments to merge")
    if len({moment.diagonal for moment in moments}) > 1:
        moments = [_written_out(moment) if moment.diagonal else moment for moment in moments]
    first = moments[0]
    if any(moment.second_moment.shape != first.second_moment.shape for moment in moments):
        raise ValueError(f"moments of shapes {[moment.second_moment.shape for moment in moments]} can't be merged")
    if len(moments) == 1:
        return first
    positions = sum(moment.positions for moment in moments)
    second, mean = np.zeros_like(first.second_moment), np.zeros_like(first.mean)
    for moment in moments:
        second += moment.second_moment * (moment.positions / positions)
        mean += moment.mean * (moment.positions / positions)
    return Moment(second, mean, sum(moment.rows for moment in moments), positions)


def without_rows(moment: Moment, parts: Sequence[Moment]) -> Moment:
    """The moment of the rows that are in none of some parts of those that it was made of, of which none was sampled.

    Raises
    ------
    ValueError : there are no others.
    """
    rows = moment.rows - sum(part.rows for part in parts)
    positions = moment.positions - sum(part.positions for part in parts)
    if rows < 1 or positions < 1:
        raise ValueError(f"{len(parts)} parts with all of the {moment.rows} rows")
    second, mean = moment.second_moment * (moment.positions / positions), moment.mean * (moment.positions / positions)
    for part in parts:
        second -= part.second_moment * (part.positions / positions)
        mean -= part.mean * (part.positions / positions)
    return Moment(second, mean, rows, positions)


def _written_out(moment: Moment) -> Moment:
    return replace(moment, second_moment=np.stack([np.diag(shares) for shares in moment.second_moment]))


def effective_rank(moment: Moment) -> float:
    """How many directions the rows really use: trace(C)^2 / ||C||_F^2, the mean over the groups.

    It is the participation ratio of the eigenvalues (Gao et al., "A theory of multineuronal dimensionality, dynamics
    and measurement", bioRxiv 214262): k for k equal eigenvalues and else zeros; needs no eigenvalues itself. Between 1
    and `in`; 0 for rows that are all zero.
    """
    if moment.diagonal:
        return 1.0 / float(np.sum(np.square(moment.second_moment)))
    ranks = []
    for matrix in moment.second_moment:
        trace = float(np.trace(matrix))
        # The ratio doesn't depend on the scale; without it, squares of tiny or huge entries leave the range.
        ranks.append(1.0 / float(np.linalg.norm(matrix / trace)) ** 2 if trace > 0.0 else 0.0)
    return sum(ranks) / len(ranks)


def estimate_condition(moment: Moment) -> float:
    """An estimate of the largest 1-norm condition number of the groups' second moments; infinite where singular.

    By a Cholesky factorization and LAPACK's estimator (Higham, "Accuracy and Stability of Numerical Algorithms",
    algorithm 15.4): never above the condition number, and as a rule within a factor of 2 of it. Matrices that are
    singular to float64's rounding count as singular.
    """
    if moment.diagonal:
        least, most = float(moment.second_moment.min()), float(moment.second_moment.max())
        return most / least if least > 0.0 else math.inf
    return max(_condition(matrix) for matrix in moment.second_moment)


def _condition(matrix: Array) -> float:
    norm = float(np.abs(matrix).sum(axis=0).max())
    if norm == 0.0:
        return math.inf
    factor, problem = lapack.dpotrf(matrix / norm)
    if problem:
        return math.inf
    reciprocal, _ = lapack.dpocon(factor, 1.0)
    return 1.0 / float(reciprocal) if reciprocal > matrix.shape[0] * np.finfo(np.float64).eps else math.inf


def advise_rows(moment: Moment) -> str | None:
    """A sentence for a user whose feeds show a site too few rows for its size, or None where they are enough.

    Enough is `ADVISED_ROWS_PER_FEATURE` times `in`. Rows of one sample (tokens, patches) resemble each other, so this
    is the least that is needed, not a guarantee.
    """
    if moment.diagonal:
        return _advise_lookups(moment)
    wanted = ADVISED_ROWS_PER_FEATURE * moment.in_features
    if moment.rows >= wanted:
        return None
    seen = f"input of {moment.in_features} features seen at only {moment.rows} row{'s' if moment.rows != 1 else ''}"
    if moment.positions >= wanted:
        return f"{seen} of {moment.positions}: let {wanted} rows go in"
    return f"{seen}: give about {math.ceil(wanted / moment.positions)} times as many samples"


def _advise_lookups(moment: Moment) -> str | None:
    never = int(np.count_nonzero(moment.second_moment == 0.0))
    if 2 * never <= moment.in_features:
        return None
    return (
        f"{never} of {moment.in_features} rows of the table were never looked up in {moment.rows} lookups: they count "
        "for little; give more samples"
    )
