"""Reduced rank regression with a pull: factors of a product that is near a target, and near given coefficients.

The L R of rank r that minimises ``||X L R - T||_F**2 + l ||L R - W||_F**2``: reduced rank regression (Izenman,
"Reduced-rank regression for the multivariate linear model", J. Multivariate Analysis 5, 1975) with a ridge that pulls
to W instead of to zero. With ``H = X'X + l I = S S'`` and M the solution of full rank, ``H M = X'T + l W``, the loss is
``||S'(L R - M)||_F**2`` and a constant. So as in `lowrank_onnx.linalg.weighted`, ``L = M V`` and ``R = V'`` with V the
leading right singular vectors of ``S' M = S^-1 (X'T + l W)``; of M itself only L is formed, ``S'^-1 (S' M V)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceName, select_backend
from lowrank_onnx.linalg.exact import column_norms
from lowrank_onnx.linalg.solve import SolverOptions, solve
from lowrank_onnx.types import Array

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PulledRegression:
    """The problem on its device, to be solved for any pull and rank.

    Attributes
    ----------
    gram : (in, in) float64, X'X.
    cross : (in, out) float64, X'T.
    towards : (in, out) float64, W.
    dtype : of the factors, and of the singular value problem.
    """

    backend: Backend
    gram: DeviceArray
    cross: DeviceArray
    towards: DeviceArray
    dtype: type[np.float32] | type[np.float64]

    def solve(self, pull: float, rank: int, options: SolverOptions) -> tuple[Array, Array]:
        """L (in, r) and R (r, out), balanced, for a pull l.

        Raises
        ------
        FactorizationError
            for a pull that isn't above 0, or where ``X'X + l I`` isn't numerically positive definite.
        """
        backend, xp = self.backend, self.backend.xp
        in_features = self.towards.shape[0]
        with backend.threads_for((in_features, in_features), in_features // 3):
            root = self._root(pull)
            weighted = backend.solve_upper(root, self.cross + pull * self.towards, transposed=True)
            single = xp.astype(weighted, xp.float64 if self.dtype is np.float64 else xp.float32)
            directions = xp.astype(solve(backend, single, rank, options).right[:, :rank], xp.float64)
            left = backend.solve_upper(root, weighted @ directions, transposed=False)
        return balanced_factors(backend, left, directions, self.dtype)

    def _root(self, pull: float) -> DeviceArray:
        """The Cholesky factor of ``X'X + l I``."""
        check_pull(pull)
        root = self.backend.cholesky_upper(self.backend.shifted(self.gram, pull))
        if root is None:
            raise FactorizationError(f"normal equations with a pull of {pull:.3g} are singular: give a larger one")
        return root


def check_pull(pull: float) -> None:
    """Refuse a pull that isn't above 0 (`FactorizationError`)."""
    if not 0.0 < pull < math.inf:
        raise FactorizationError(f"pull {pull:g}: expected a finite number above 0")


def balanced_factors(
    backend: Backend, left: DeviceArray, directions: DeviceArray, dtype: type[np.float32] | type[np.float64]
) -> tuple[Array, Array]:
    """L (in, r) and R (r, out) on the host, whose columns and rows have equal norms, from L and orthonormal columns."""
    xp = backend.xp

    def to_host(factor: DeviceArray) -> Array:
        return np.ascontiguousarray(backend.to_host(factor).astype(dtype))

    norms = xp.sqrt(column_norms(backend, left))
    left = left / xp.where(norms > 0, norms, xp.ones_like(norms))
    return to_host(left), to_host((directions * norms).T)


def pulled_regression(gram: Doubles, cross: Doubles, towards: Array, device: DeviceName) -> PulledRegression:
    """Set up the problem on a device.

    Parameters
    ----------
    gram : (in, in), ``X'X``, symmetric positive semidefinite, of any rank.
    cross : (in, out), ``X'T``.
    towards : (in, out) float32 or float64, W; the factors get its dtype.
    device : as for `lowrank_onnx.linalg.factor`.

    Raises
    ------
    FactorizationError
        for shapes that don't go together, or values that aren't finite.
    """
    if gram.shape != (towards.shape[0],) * 2 or cross.shape != towards.shape:
        raise FactorizationError(
            f"normal equations of shapes {gram.shape} and {cross.shape} for coefficients of {towards.shape}: "
            "expected (in, in), (in, out) and (in, out)"
        )
    if not all(np.isfinite(part).all() for part in (gram, cross, towards)):
        raise FactorizationError("normal equations with NaN or infinite entries: expected finite; check the feeds")
    return pulled_regression_on(select_backend(device), gram, cross, towards)


def pulled_regression_on(backend: Backend, gram: Doubles, cross: Doubles, towards: Array) -> PulledRegression:
    """`pulled_regression` on a given backend, without its checks."""
    G, W = backend.to_device(gram), backend.to_device(towards.astype(np.float64))
    dtype = np.float64 if towards.dtype == np.float64 else np.float32
    return PulledRegression(backend, G, backend.to_device(cross), W, dtype)
