"""What a factorization leaves behind: the residual's norms, measured without ever forming it whole."""

from __future__ import annotations

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.orthonormal import orthonormalize
from lowrank_onnx.linalg.precision import squared_norm
from lowrank_onnx.linalg.sketch import draw_gaussian

PROBES = 8
"""Columns of the random block from which the spectral norm of a residual is estimated."""

STEPS = 5
"""Block Lanczos steps of that estimate: each is one product with the matrix and one with its transpose."""

RESIDUAL_BYTES = 64 * 2**20
"""Size of the pieces in which a residual is formed to measure its Frobenius norm."""


def residual_energy(backend: Backend, W: DeviceArray, left: DeviceArray, right: DeviceArray) -> float:
    """``||W - left @ right||_F**2`` from the residual itself, piece by piece; left is (m, r), right (r, n)."""
    rows = max(1, 8 * RESIDUAL_BYTES // (W.shape[1] * backend.xp.finfo(W.dtype).bits))
    total = 0.0
    for start in range(0, W.shape[0], rows):
        piece = slice(start, min(start + rows, W.shape[0]))
        total += squared_norm(backend, W[piece, :] - left[piece, :] @ right)
    return total


def residual_norm_estimate(
    backend: Backend, W: DeviceArray, scaled_left: DeviceArray, right: DeviceArray, seed: int
) -> float:
    """A lower estimate of ``||W - scaled_left @ right.T||_2`` for W (m, n) and right (n, r).

    The largest Ritz value of a random block Krylov space of dimension PROBES * STEPS: never above the norm (beyond
    rounding), and within a few percent of it unless the residual's spectrum is nearly flat. Exact for a side of at
    most that dimension.
    """
    xp = backend.xp
    n = W.shape[1]
    if min(W.shape) <= PROBES * STEPS:
        return float(xp.linalg.svdvals(W - scaled_left @ right.T)[0])
    width = PROBES
    X = backend.to_device(draw_gaussian(n, width, seed, backend.numpy_dtype(W), stream=2))
    blocks: list[DeviceArray] = []
    images: list[DeviceArray] = []
    for _ in range(STEPS):
        for _repeat in range(2):
            for known in blocks:
                X = X - known @ (known.T @ X)
            X = orthonormalize(backend, X)
        image = backend.product(W, X) - scaled_left @ (right.T @ X)
        blocks.append(X)
        images.append(image)
        X = backend.product(W.T, image) - right @ (scaled_left.T @ image)
    stacked = xp.concat(images, axis=1)
    return float(xp.linalg.svdvals(xp.linalg.qr(stacked)[1])[0])
