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

ASYMMETRY = 1e-3
"""Largest entry of C - C', relative to the largest of C, that is taken for rounding."""

SYMMETRIZED_TILE = 128
"""Order of the tiles in which a second moment is compared with its transpose."""

NEGATIVE_SHARE = 1e-3
"""Largest negative eigenvalue, relative to the largest, that is taken for rounding of an accumulation in float32."""


def checked_second_moment(second_moment: Array, in_features: int) -> tuple[NDArray[np.float64], float]:
    """The second moment in float64, symmetrized and scaled to a mean diagonal of 1, and that scale.

    Raises
    ------
    FactorizationError
        where it is not (in, in), not finite, not symmetric, or zero or negative on the whole diagonal.
    """
    if second_moment.shape != (in_features, in_features):
        raise FactorizationError(
            f"second moment of shape {second_moment.shape}: expected {(in_features, in_features)}, the in side squared"
        )
    C = second_moment.astype(np.float64)
    largest = max(float(C.max()), -float(C.min()))
    if not np.isfinite(largest):
        raise FactorizationError(
            "second moment with NaN or infinite entries: expected finite; check the calibration feeds"
        )
    if float(np.trace(C)) <= 0.0:
        raise FactorizationError("second moment with a trace of 0: no input was ever non-zero; factorize without it")
    C /= largest
    if _symmetrize(C) > ASYMMETRY:
        raise FactorizationError("second moment that is not symmetric: expected X'X of the inputs")
    scale = float(np.trace(C)) / in_features
    C /= scale
    return C, scale * largest


def _symmetrize(C: NDArray[np.float64]) -> float:
    """Replace C by the mean of C and C', in place and in tiles that fit the cache; the largest entry of C - C'."""
    size, worst = C.shape[0], 0.0
    for row in range(0, size, SYMMETRIZED_TILE):
        for column in range(row, size, SYMMETRIZED_TILE):
            upper = C[row : row + SYMMETRIZED_TILE, column : column + SYMMETRIZED_TILE]
            lower = C[column : column + SYMMETRIZED_TILE, row : row + SYMMETRIZED_TILE].T
            difference = float(np.max(np.abs(upper - lower)))
            if difference > 0.0:
                upper[...] = (upper + lower) / 2.0
                lower[...] = upper
                worst = max(worst, difference)
    return worst


def transposed_root(backend: Backend, C: NDArray[np.float64]) -> DeviceArray:
    """S' with ``S S' = C + FLOOR * I`` in float64 on the device: Cholesky's factor, or from the eigenvectors.

    Raises
    ------
    FactorizationError
        where C has a materially negative eigenvalue.
    """
    xp = backend.xp
    floored = backend.to_device(C + FLOOR * np.eye(C.shape[0]))
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
