"""The problem of `lowrank_onnx.linalg.ridge` from the rows themselves, where they are fewer than the features.

With ``K = X X'``, ``R = T - X W`` and ``B = (K + l I)^-1 R`` the solution of full rank is ``M = W + X' B`` (the dual
form of ridge regression: Saunders, Gammerman and Vovk, "Ridge regression learning algorithm in dual variables", ICML
1998). The loss of L R is ``||L R - M||_H**2`` and a constant with ``H = X'X + l I = S S'``, so the leading right
singular vectors V of ``S' M`` are the leading eigenvectors of

    M' H M = (X M)' (X M) + l M' M,    X M = X W + K B,    M' M = W'W + (X W)' B + B' (X W) + B' K B,

and ``L = M V``, ``R = V'``. Nothing of the size of X'X is ever formed: what is solved at each pull has as many rows as
there are, or as outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceName, select_backend
from lowrank_onnx.linalg.ridge import balanced_factors, check_pull
from lowrank_onnx.linalg.solve import SolverOptions, solve
from lowrank_onnx.types import Array


@dataclass(frozen=True, slots=True, eq=False)
class PulledRows:
    """The problem on its device, to be solved for any pull and rank.

    Attributes
    ----------
    inputs : (n, in) float32 or float64, X.
    towards : (in, out) of the same dtype, W.
    gram : (n, n) float64, X X'.
    image : (n, out) float64, X W.
    missed : (n, out) float64, T - X W.
    squares : (out, out) float64, W'W.
    dtype : of the factors, and of the singular value problem.
    """

    backend: Backend
    inputs: DeviceArray
    towards: DeviceArray
    gram: DeviceArray
    image: DeviceArray
    missed: DeviceArray
    squares: DeviceArray
    dtype: type[np.float32] | type[np.float64]

    def solve(self, pull: float, rank: int, options: SolverOptions) -> tuple[Array, Array]:
        """L (in, r) and R (r, out), balanced, for a pull l.

        Raises
        ------
        FactorizationError
            for a pull that isn't above 0, or where ``X X' + l I`` isn't numerically positive definite.
        """
        backend, xp = self.backend, self.backend.xp
        rows, in_features = self.inputs.shape
        with backend.threads_for((rows, in_features), self.towards.shape[1]):
            moved = self._moved(pull)
            directions = self._directions(pull, moved, rank, options)
            single = self.inputs.dtype
            left = self.towards @ xp.astype(directions, single) + self.inputs.T @ xp.astype(moved @ directions, single)
            return balanced_factors(backend, xp.astype(left, xp.float64), directions, self.dtype)

    def _moved(self, pull: float) -> DeviceArray:
        """B, by which the solution is away from W."""
        check_pull(pull)
        backend = self.backend
        root = backend.cholesky_upper(backend.shifted(self.gram, pull))
        if root is None:
            raise FactorizationError(f"equations of rows with a pull of {pull:.3g} are singular: give a larger one")
        half = backend.solve_upper(root, self.missed, transposed=True)
        return backend.solve_upper(root, half, transposed=False)

    def _directions(self, pull: float, moved: DeviceArray, rank: int, options: SolverOptions) -> DeviceArray:
        """V (out, r) float64."""
        backend, xp = self.backend, self.backend.xp
        step = self.gram @ moved
        image, across = self.image + step, self.image.T @ moved
        energy = image.T @ image + pull * (self.squares + across + across.T + moved.T @ step)
        energy = (energy + energy.T) / 2.0
        root = backend.cholesky_upper(energy)
        if root is None:  # outputs that depend on each other
            return backend.eigh_leading(energy, rank)[1]
        single = xp.astype(root, xp.float64 if self.dtype is np.float64 else xp.float32)
        return xp.astype(solve(backend, single, rank, options).right[:, :rank], xp.float64)


def pulled_rows(inputs: Array, targets: Array, towards: Array, device: DeviceName) -> PulledRows:
    """Set up the problem on a device.

    Parameters
    ----------
    inputs : (n, in) float32 or float64, X.
    targets : (n, out), T.
    towards : (in, out) of the dtype of `inputs`, W; the factors get it too.
    device : as for `lowrank_onnx.linalg.factor`.

    Raises
    ------
    FactorizationError
        for shapes that don't go together, or values that aren't finite.
    """
    if inputs.shape[1:] != towards.shape[:1] or targets.shape != (len(inputs), towards.shape[1]):
        raise FactorizationError(
            f"rows of shapes {inputs.shape} and {targets.shape} for coefficients of {towards.shape}: "
            "expected (n, in), (n, out) and (in, out)"
        )
    if not all(np.isfinite(part).all() for part in (inputs, targets, towards)):
        raise FactorizationError("rows with NaN or infinite entries: expected finite; check the feeds")
    return pulled_rows_on(select_backend(device), inputs, targets, towards)


def pulled_rows_on(backend: Backend, inputs: Array, targets: Array, towards: Array) -> PulledRows:
    """`pulled_rows` on a given backend, without its checks."""
    xp = backend.xp

    def wide(array: NDArray[np.floating]) -> DeviceArray:
        return xp.astype(array, xp.float64, copy=False)

    X, W, T = (backend.to_device(part) for part in (inputs, towards, targets))
    image = wide(X @ W)
    precise = wide(X)
    return PulledRows(
        backend=backend,
        inputs=X,
        towards=W,
        gram=precise @ precise.T,
        image=image,
        missed=wide(T) - image,
        squares=wide(backend.gram(W)),
        dtype=np.float64 if towards.dtype == np.float64 else np.float32,
    )
