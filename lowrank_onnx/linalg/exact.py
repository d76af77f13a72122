"""Exact solvers: the full SVD, and the leading eigenvectors of the smaller Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.solution import Triplets

RankFinder: TypeAlias = Callable[[NDArray[np.float64]], int]
"""From all singular values of a matrix, descending, to the rank that is wanted."""

SQUARING_LIMIT = 1000.0
"""Eigenvalues of W'W are trusted down to this many roundings of the largest (float32: singular values down to 0.011 of
the largest; float64: 5e-7): below, squaring has eaten the digits that a normalised error of 1.02 needs."""

GRAM_ROWS = 4096
"""Rows of a float32 matrix that are widened at a time where its Gram matrix is accumulated in float64."""


def solve_svd(backend: Backend, W: DeviceArray, rank: int) -> Triplets:
    """The leading `rank` triplets of the full SVD of W (m, n): accurate to rounding relative to ``||W||_2``."""
    U, values, Vt = backend.xp.linalg.svd(W, full_matrices=False)
    following = float(values[rank]) if rank < values.shape[0] else 0.0
    return Triplets(U[:, :rank] * values[:rank], values[:rank], Vt[:rank, :].T, "svd", following, rank)


def solve_eigen(backend: Backend, W: DeviceArray, rank: int | RankFinder) -> Triplets | None:
    """The leading triplets of a tall W (m, n), m >= n, from the eigenvectors of ``W'W``.

    The Gram matrix is taken in W's dtype, and again in float64 where float32 has lost the small singular values.

    Parameters
    ----------
    rank : how many, or a function that tells from all singular values (float64, descending).

    Returns
    -------
    Triplets or None
        None where even float64 has lost them: then only the SVD will do.
    """
    xp = backend.xp
    size = W.shape[1]
    for dtype in (W.dtype,) if W.dtype == xp.float64 else (W.dtype, xp.float64):
        G = backend.gram(W) if dtype == W.dtype else _wide_gram(backend, W)
        if dtype != xp.float64 and isinstance(rank, int) and rank + 1 >= size and _surely_lost(backend, G, dtype):
            continue
        squares, V = backend.eigh_leading(G, min(rank + 1, size) if isinstance(rank, int) else size)
        settled = rank if isinstance(rank, int) else rank(_roots(backend, squares))
        if not trustworthy(backend, squares[: min(settled + 1, size)], dtype):
            continue
        V = backend.contiguous(xp.astype(V[:, :settled], W.dtype, copy=False))
        following = max(float(squares[settled]), 0.0) ** 0.5 if settled < squares.shape[0] else 0.0
        note = "" if dtype == W.dtype else ", float64"
        return sorted_triplets(backend, W @ V, V, f"eigen(n={size}{note})", following)
    return None


def _roots(backend: Backend, squares: DeviceArray) -> NDArray[np.float64]:
    return np.sqrt(np.clip(backend.to_host(squares).astype(np.float64), 0.0, None))


def trustworthy(backend: Backend, squares: DeviceArray, dtype: object) -> bool:
    """Whether the smallest of these descending eigenvalues of a Gram matrix stands clear of the largest's rounding."""
    rounding = float(backend.xp.finfo(dtype).eps)
    return float(squares[-1]) >= SQUARING_LIMIT * rounding * float(squares[0])


def _surely_lost(backend: Backend, G: DeviceArray, dtype: object) -> bool:
    """Whether the smallest eigenvalue of a Gram matrix can't be trusted, told by a Cholesky factorization: it costs a
    small part of the eigenvectors that would be thrown away.

    ``||G||_F^2 / trace G`` is at most the largest eigenvalue, so what fails here would fail `trustworthy`.
    """
    xp = backend.xp
    trace = float(xp.linalg.trace(G))
    largest = float(xp.sum(G * G)) / trace if trace > 0.0 else 0.0
    limit = SQUARING_LIMIT * float(xp.finfo(dtype).eps) * largest
    return backend.cholesky_upper(G - limit * xp.eye(G.shape[0], dtype=dtype, device=backend.device)) is None


def sorted_triplets(
    backend: Backend, scaled_left: DeviceArray, right: DeviceArray, solver: str, residual: float
) -> Triplets:
    """Triplets from ``W V`` and V: the values are the norms of ``W V``, which are exact where eigenvalues are not."""
    xp = backend.xp
    values = column_norms(backend, scaled_left)
    if bool(xp.any(values[1:] > values[:-1])):
        order = xp.argsort(values, descending=True, stable=True)
        values = xp.take(values, order)
        scaled_left, right = xp.take(scaled_left, order, axis=1), xp.take(right, order, axis=1)
    return Triplets(scaled_left, values, right, solver, residual, values.shape[0])


def column_norms(backend: Backend, A: DeviceArray) -> DeviceArray:
    """2-norms of the columns of A, summed in float64 and given in A's dtype."""
    xp = backend.xp
    total = xp.zeros(A.shape[1], dtype=xp.float64, device=backend.device)
    for start in range(0, A.shape[0], GRAM_ROWS):
        part = xp.astype(A[start : min(start + GRAM_ROWS, A.shape[0]), :], xp.float64, copy=False)
        total = total + xp.sum(part * part, axis=0)
    return xp.astype(xp.sqrt(total), A.dtype, copy=False)


def _wide_gram(backend: Backend, W: DeviceArray) -> DeviceArray:
    xp = backend.xp
    G = xp.zeros((W.shape[1], W.shape[1]), dtype=xp.float64, device=backend.device)
    for start in range(0, W.shape[0], GRAM_ROWS):
        G = G + backend.gram(xp.astype(W[start : min(start + GRAM_ROWS, W.shape[0]), :], xp.float64))
    return G
