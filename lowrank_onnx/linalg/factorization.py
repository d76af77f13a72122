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
    spectral_norm : float
        The largest singular value of W: exact, or of the factors where those are near-optimal.
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
    spectral_norm: float
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

    def noted(self, note: str) -> Factorization:
        """The same, with a note behind the solver."""
        return replace(self, solver=f"{self.solver}, {note}")

    def truncate(self, rank: int) -> Factorization:
        """The first `rank` directions: the rank-`rank` factorization that the same run holds.

        Its Frobenius errors are exact: what the full rank leaves out plus the dropped directions, both squared. Its
        spectral error is the larger of two lower bounds: the first dropped direction, and the error at the full rank.

        Raises
        ------
        FactorizationError
            if `rank` is not from 1 to this factorization's rank.
        """
        if not 1 <= rank <= self.rank:
            raise FactorizationError(
                f"truncate to rank {rank}: expected 1 to {self.rank}, the rank of the factorization"
            )
        if rank == self.rank:
            return self
        strengths = self._strengths()
        first = float(strengths[rank]) / self.spectral_norm if self.spectral_norm > 0.0 else 0.0
        weighted = None
        if self.weighted_error is not None:
            weighted = _prefix_error(self.weighted_error, self.singular_values.astype(np.float64), rank)
        return replace(
            self,
            left=self.left[:, :rank],
            right=self.right[:rank],
            singular_values=self.singular_values[:rank],
            solver=f"{self.solver}, truncated from {self.rank}",
            relative_error=_prefix_error(self.relative_error, strengths, rank),
            spectral_error=max(self.spectral_error, first),
            weighted_error=weighted,
        )

    def _strengths(self) -> NDArray[np.float64]:
        """Norm of each rank-one term: the singular values, but for a weighted factorization."""
        if self.weighted_error is None:
            return self.singular_values.astype(np.float64)
        left = np.sqrt(np.einsum("ij,ij->j", self.left, self.left, dtype=np.float64))
        right = np.sqrt(np.einsum("ij,ij->i", self.right, self.right, dtype=np.float64))
        product: NDArray[np.float64] = left * right
        return product


def _prefix_error(known: float, strengths: NDArray[np.float64], rank: int) -> float:
    """Relative error of the first `rank` terms, where all of them leave the relative error `known`.

    The terms are a projection of the matrix, so together they hold ``1 - known**2`` of its energy. Strengths are taken
    relative to the largest, so that no scale over- or underflows.
    """
    largest = float(np.max(strengths))
    if largest == 0.0:
        return known
    squares = (strengths / largest) ** 2
    return math.sqrt(known**2 + (1.0 - known**2) * float(np.sum(squares[rank:]) / np.sum(squares)))
