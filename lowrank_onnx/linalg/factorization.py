"""The result of a factorization: balanced factors, the spectrum that they hold, and their measured errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError


@dataclass(frozen=True, slots=True)
class Factorization:
    """A rank-r approximation ``W ~ left @ right`` of an (in, out) matrix.

    Attributes
    ----------
    left : (in, r), right : (r, out)
        NumPy arrays in the accumulation dtype (float32, or float64 for a float64 W), balanced: each carries the square
        root of the singular values (with a second moment: equal norms of each column of `left` and row of `right`).
    singular_values : (r,)
        Of ``left @ right``, descending, in the accumulation dtype; with a second moment, of ``S' left @ right``.
    energy : float
        ``||W||_F**2`` in float64; with a second moment see `weighted_energy`.
    relative_error : float
        ``||W - left @ right||_F / ||W||_F``, exact up to rounding: from the energy that was not captured, or where that
        would cancel from the residual itself.
    spectral_error : float
        A lower estimate of ``||W - left @ right||_2 / ||W||_2``, by a few Lanczos steps on the residual; typically
        within a few percent. `lowrank_onnx.linalg.certificate` has the upper bound with its failure probability.
    solver : str
        What really ran, e.g. ``"rsi(q=4, p=10)"``, followed by the reason where it was chosen or fell back.
    weighted_energy, weighted_error : float or None
        With a second moment C = S S': ``||S' W||_F**2`` and ``||S' (W - left @ right)||_F / ||S' W||_F``.
    """

    left: NDArray[Any]
    right: NDArray[Any]
    singular_values: NDArray[Any]
    energy: float
    relative_error: float
    spectral_error: float
    solver: str
    weighted_energy: float | None = None
    weighted_error: float | None = None

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.left.shape[1])

    def reconstruct(self) -> NDArray[Any]:
        """``left @ right``: (in, out), in the accumulation dtype."""
        product: NDArray[Any] = self.left @ self.right
        return product

    def truncate(self, rank: int) -> Factorization:
        """The first `rank` directions: the rank-`rank` factorization that the same run holds.

        Its Frobenius error is exact: the error at the full rank plus the dropped singular values, both squared. Its
        spectral error is at least the first dropped singular value and at most ``hypot`` of that with the spectral
        error at the full rank; the larger of the two known lower bounds is given.

        Raises
        ------
        FactorizationError
            if `rank` is not from 1 to this factorization's rank, or if it was weighted and the unweighted error of the
            prefix can therefore not be had without the matrix.
        """
        if not 1 <= rank <= self.rank:
            raise FactorizationError(f"truncate to rank {rank}: expected 1 to {self.rank}, the rank of the factorization")
        if rank == self.rank:
            return self
        values = self.singular_values.astype(np.float64)
        known = self.relative_error if self.weighted_error is None else self.weighted_error
        if values[0] > 0.0:
            # Squares are taken relative to the largest, so that no scale over- or underflows; what the factors hold
            # is 1 - known**2 of the energy, because they are a projection of the matrix.
            values = values / values[0]
            dropped = (1.0 - known**2) * float(np.sum(values[rank:] ** 2) / np.sum(values**2))
        else:
            dropped = 0.0
        error = math.sqrt(known**2 + dropped)
        first = float(values[rank])
        prefix = replace(
            self,
            left=self.left[:, :rank],
            right=self.right[:rank],
            singular_values=self.singular_values[:rank],
            solver=f"{self.solver}, truncated from {self.rank}",
        )
        if self.weighted_energy is None:
            return replace(prefix, relative_error=error, spectral_error=max(self.spectral_error, first))
        return replace(prefix, weighted_error=error, relative_error=math.nan, spectral_error=math.nan)
