"""Block Golub-Kahan bidiagonalization: the Krylov solver for spectra that squaring would destroy.

The same space as `krylov` builds, but W and W' are applied to orthonormal blocks in turn, so that no product ever holds
squared singular values, and the small problem is a singular value decomposition. Accurate to rounding relative to
``||W||_2``, for the price of a second basis.
"""

from __future__ import annotations

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.krylov import GROWTH, block_width
from lowrank_onnx.linalg.orthonormal import orthonormal_complement
from lowrank_onnx.linalg.residual import residual_norm_estimate
from lowrank_onnx.linalg.sketch import draw_gaussian
from lowrank_onnx.linalg.solution import Triplets

ROUNDING_FLOOR = 8.0
"""Residuals below this many roundings of the largest singular value, times sqrt(n), can't be improved on."""


def solve_bidiagonal(
    backend: Backend, W: DeviceArray, rank: int, *, tolerance: float, seed: int, limit: int
) -> Triplets | None:
    """The leading `rank` triplets of a tall W (m, n) to a normalised spectral error of about `tolerance`.

    Returns
    -------
    Triplets or None
        None where `limit`, the largest dimension of the space, was reached first.
    """
    xp = backend.xp
    m, n = W.shape
    block = block_width(rank, m * n)
    capacity = min(limit, n)
    target = rank + 2 * block
    if target > capacity:
        return None
    left = xp.empty((capacity, m), dtype=W.dtype, device=backend.device)
    right = xp.empty((capacity, n), dtype=W.dtype, device=backend.device)
    images = xp.empty((capacity, n), dtype=W.dtype, device=backend.device)
    X = backend.product(W, backend.to_device(draw_gaussian(n, block, seed, backend.numpy_dtype(W))))
    size = 0
    while True:
        while size < target:
            X = X[:, : capacity - size]
            stop = size + X.shape[1]
            U = orthonormal_complement(backend, left[:size, :].T, X)
            left[size:stop, :] = U.T
            image = backend.product(W.T, U)
            images[size:stop, :] = image.T
            Q = orthonormal_complement(backend, right[:size, :].T, image)
            right[size:stop, :] = Q.T
            X = backend.product(W, Q)
            size = stop
        V, values, St = xp.linalg.svd(images[:size, :].T, full_matrices=False)
        scaled_left = (left[:size, :].T @ St[:rank, :].T) * values[:rank]
        V = V[:, :rank]
        residual = residual_norm_estimate(backend, W, scaled_left, V, seed)
        rounding = ROUNDING_FLOOR * n**0.5 * float(xp.finfo(W.dtype).eps) * float(values[0])
        if residual <= max(tolerance * float(values[rank]), rounding):
            solver = f"bidiagonal(b={block}, d={size})"
            return Triplets(scaled_left, values[:rank], V, solver, max(residual, float(values[rank])), rank)
        target = size + block * max(1, round(GROWTH * size / block))
        if target > capacity:
            return None
