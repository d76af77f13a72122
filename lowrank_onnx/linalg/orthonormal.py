"""Orthonormal bases by products: CholeskyQR with column scaling and a Householder fallback.

The Gram matrix of a block is formed and factorized in float64 whatever the block's dtype (the mixed precision
CholeskyQR of Yamazaki, Tomov and Dongarra, SIAM J. Sci. Comput. 37, 2015), which for float32 blocks moves the point of
failure from a condition number of about 3e3 to about 1e7. One pass leaves an error of order eps * condition number;
callers that need orthogonality down to rounding run it twice.
"""

from __future__ import annotations

import math

from lowrank_onnx.linalg.backend import Backend, DeviceArray

MOST_AMPLIFIED = 4.0
"""By how much a pass may have stretched a column, and with it what was left of the basis in it, to be the last one."""

PASSES = 4
"""More are never needed: each leaves of the basis what rounding leaves, stretched by less than the one before."""


def orthonormalize(backend: Backend, Z: DeviceArray) -> DeviceArray:
    """An orthonormal basis (n, b) of a space that holds the columns of Z (n, b), n >= b, in Z's dtype.

    Columns of Z that depend on others, or are zero, are replaced by arbitrary directions, as Householder QR does.
    """
    return _orthonormalize(backend, Z)[0]


def orthonormal_complement(backend: Backend, basis: DeviceArray, Z: DeviceArray) -> DeviceArray:
    """Orthonormal (n, b) columns, orthogonal to `basis` (n, k) to rounding, whose span with it holds that of Z (n, b).

    Where Z adds fewer than b directions, arbitrary ones take their place; n must be at least k + b.
    """
    Q = orthonormalize(backend, Z)
    for _ in range(PASSES):
        Q, amplified = _orthonormalize(backend, project_out(basis, Q))
        if amplified <= MOST_AMPLIFIED:
            break
    return Q


def project_out(basis: DeviceArray, Z: DeviceArray) -> DeviceArray:
    """Z (n, b) minus its part in the span of the orthonormal columns of `basis` (n, k)."""
    return Z - basis @ (basis.T @ Z)


def _orthonormalize(backend: Backend, Z: DeviceArray) -> tuple[DeviceArray, float]:
    """An orthonormal basis, and by how much the columns of Z were stretched to get it."""
    xp = backend.xp
    wide = xp.astype(Z, xp.float64, copy=False)
    G = wide.T @ wide
    scale = xp.sqrt(xp.linalg.diagonal(G))
    if float(xp.min(scale)) > 0.0:
        inverse = backend.inverse_cholesky(G / (scale[:, None] * scale[None, :]))
        if inverse is not None:
            inverse = inverse / scale[:, None]
            amplified = float(xp.max(xp.linalg.diagonal(inverse)))
            return Z @ xp.astype(inverse, Z.dtype, copy=False), amplified
    return xp.linalg.qr(Z)[0], math.inf
