"""Orthonormal bases by products: CholeskyQR with column scaling and a Householder fallback.

The Gram matrix of a block is formed and factorized in float64 whatever the block's dtype (the mixed precision
CholeskyQR of Yamazaki, Tomov and Dongarra, SIAM J. Sci. Comput. 37, 2015), which for float32 blocks moves the point of
failure from a condition number of about 3e3 to about 1e7. One pass leaves an error of order eps * condition number;
callers that need orthogonality down to rounding run it twice.
"""

from __future__ import annotations

from lowrank_onnx.linalg.backend import Backend, DeviceArray


def orthonormalize(backend: Backend, Z: DeviceArray) -> DeviceArray:
    """An orthonormal basis (n, b) of a space that holds the columns of Z (n, b), n >= b, in Z's dtype.

    Columns of Z that depend on others, or are zero, are replaced by arbitrary directions, as Householder QR does.
    """
    xp = backend.xp
    wide = xp.astype(Z, xp.float64, copy=False)
    G = wide.T @ wide
    scale = xp.sqrt(xp.linalg.diagonal(G))
    if float(xp.min(scale)) > 0.0:
        inverse = backend.inverse_cholesky(G / (scale[:, None] * scale[None, :]))
        if inverse is not None:
            return Z @ xp.astype(inverse / scale[:, None], Z.dtype, copy=False)
    return xp.linalg.qr(Z)[0]


def project_out(basis: DeviceArray, Z: DeviceArray) -> DeviceArray:
    """Z (n, b) minus its part in the span of the orthonormal columns of `basis` (n, k)."""
    return Z - basis @ (basis.T @ Z)
