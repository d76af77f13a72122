"""Factors that are best for the inputs that a weight really sees: the norm weighted by their second moment.

For inputs with second moment C = S S' the expected squared error of the outputs is ``||S'(W - L R)||_F**2``. The best
rank-r approximation of ``A = S' W`` is ``A V V'`` with V its leading right singular vectors, and ``S' (W V) V'`` is
that very matrix: so ``L = W V``, ``R = V'`` solves the problem without an inverse of S, whatever C's rank (COALA, arXiv
2507.07580, avoids the inverse by the mirrored projection). Where C is singular, directions that no input
excites cost nothing; a small multiple of the identity makes them follow the plain norm instead of chance.

``S' W`` is formed rather than applied as an operator: its norm, which the errors are relative to, takes as many
operations as the product, by whatever route, and every step of every solver is then one product instead of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.types import Array

FLOOR = 1e-8
"""Of the mean eigenvalue, added to C: far below what any calibration resolves, far above float64 rounding."""

FEW_OUTPUTS = 2
"""Inputs for each output from which on the outputs' second moment is cheaper to factor than the inputs'."""

ASYMMETRY = 1e-3
"""Largest entry of C - C', relative to the largest of C, that is taken for rounding."""

ROWS_AT_ONCE = 64
"""Of a second moment that is being checked: few enough to stay in cache with their mirror images."""

NEGATIVE_SHARE = 1e-3
"""Largest negative eigenvalue, relative to the largest, that is taken for rounding of an accumulation in float32."""


def checked_second_moment(second_moment: Array, in_features: int) -> tuple[NDArray[np.float64], float]:
    """The second moment in float64, symmetrized and scaled to a mean diagonal of 1, and that scale.

    Of a diagonal one, the diagonal (in,) will do.

    Raises
    ------
    FactorizationError
        where it is not (in, in), not finite, not symmetric, or zero or negative on the whole diagonal.
    """
    if second_moment.shape not in ((in_features, in_features), (in_features,)):
        raise FactorizationError(
            f"second moment of shape {second_moment.shape}: expected {(in_features, in_features)}, the in side squared"
        )
    C = second_moment.astype(np.float64, copy=False)
    largest = max(float(np.max(C)), -float(np.min(C)))
    if not np.isfinite(largest):
        raise FactorizationError(
            "second moment with NaN or infinite entries: expected finite; check the calibration feeds"
        )
    diagonal = C if C.ndim == 1 else np.diagonal(C)
    if not float(np.sum(diagonal / (largest or 1.0))) > 0.0:
        raise FactorizationError("second moment with a trace of 0: no input was ever non-zero; factorize without it")
    scale = float(np.sum(diagonal / largest)) / in_features
    if C.ndim == 1:
        least = float(np.min(C))
        if least < 0.0:
            raise FactorizationError(f"second moment with {least:.3g} on its diagonal: expected none below 0")
        return C / largest / scale, scale * largest
    return _symmetrized(C, largest, scale), scale * largest


def _symmetrized(C: NDArray[np.float64], largest: float, scale: float) -> NDArray[np.float64]:
    """(C + C') / 2 in units of `largest` times `scale`, some rows at a time: large matrices aren't copied on the way.

    Raises
    ------
    FactorizationError
        where C isn't symmetric but for rounding.
    """
    symmetric = np.empty(C.shape)
    for start in range(0, C.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block, mirrored = C[rows] / largest, C[:, rows].T / largest
        if float(np.max(np.abs(block - mirrored))) > ASYMMETRY:
            raise FactorizationError("second moment that is not symmetric: expected X'X of the inputs")
        symmetric[rows] = (block + mirrored) / (2.0 * scale)
    return symmetric


def weigh(backend: Backend, C: NDArray[np.float64], W: DeviceArray) -> DeviceArray:
    """``S' W`` with ``S S' = C + FLOOR * I``, in W's dtype; C is (in, in), or its diagonal (in,).

    Or what stands for it: of a W in float32 with few outputs, the (out, out) factor of ``W' S S' W``. Its right
    singular vectors and its singular values are the same, and squaring in float64 loses nothing that float32 resolves.

    Raises
    ------
    FactorizationError
        where C has a materially negative eigenvalue that outputs show.
    """
    xp = backend.xp
    if C.ndim == 1:
        return xp.astype(backend.to_device(np.sqrt(C + FLOOR)), W.dtype, copy=False)[:, None] * W
    if W.dtype == xp.float32 and W.shape[1] * FEW_OUTPUTS <= W.shape[0]:
        narrow = _root_of_outputs(backend, C, W)
        if narrow is not None:
            return narrow
    return xp.astype(transposed_root(backend, C), W.dtype, copy=False) @ W


def _root_of_outputs(backend: Backend, C: NDArray[np.float64], W: DeviceArray) -> DeviceArray | None:
    """R in W's dtype with ``R' R = W' (C + FLOOR * I) W``; None where outputs aren't independent, to float64."""
    xp = backend.xp
    wide = xp.astype(W, xp.float64)
    G = wide.T @ (backend.to_device(C) @ wide) + FLOOR * (wide.T @ wide)
    R = backend.cholesky_upper((G + G.T) / 2.0)
    return None if R is None else xp.astype(R, W.dtype, copy=False)


def transposed_root(backend: Backend, C: NDArray[np.float64]) -> DeviceArray:
    """S' with ``S S' = C + FLOOR * I`` in float64 on the device: Cholesky's factor, or from the eigenvectors.

    Raises
    ------
    FactorizationError
        where C has a materially negative eigenvalue.
    """
    xp = backend.xp
    floored = backend.shifted(backend.to_device(C), FLOOR)
    R = backend.cholesky_upper(floored)
    if R is not None:
        return R
    values, vectors = backend.eigh_leading(floored, C.shape[0])
    if float(values[-1]) < -NEGATIVE_SHARE * float(values[0]):
        raise FactorizationError(
            f"second moment with an eigenvalue of {float(values[-1]):.3g} times its mean: expected none below 0; "
            "accumulate X'X in float64"
        )
    return xp.sqrt(xp.clip(values, min=FLOOR))[:, None] * vectors.T
