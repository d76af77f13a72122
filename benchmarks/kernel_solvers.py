"""The solvers that the kernel benchmark compares: this library's and its peers', behind one signature."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from lowrank_onnx.linalg import factor

Factors = tuple[NDArray[Any], NDArray[Any]]
Solver = Callable[[NDArray[Any], int], tuple[Factors, str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A randomized solver with a number of power iterations to choose."""

    name: str
    solve: Callable[[NDArray[Any], int, int], Factors]


def auto(tolerance: float = 1.02) -> Solver:
    """What this library chooses, its measurement of its own errors included."""

    def solve(W: NDArray[Any], rank: int) -> tuple[Factors, str]:
        result = factor(W, rank, tolerance=tolerance, device="cpu")
        return (result.left, result.right), result.solver

    return solve


def textbook_rsi(power_iterations: int) -> Solver:
    """Randomized subspace iteration as published, without this library's measurement of its errors."""

    def solve(W: NDArray[Any], rank: int) -> tuple[Factors, str]:
        Y = np.random.default_rng(0).standard_normal((W.shape[1], rank)).astype(W.dtype)
        for _ in range(power_iterations):
            X, _R = np.linalg.qr(W @ Y)
            Y = W.T @ X
        U, s, Vt = np.linalg.svd(Y.T, full_matrices=False)
        return ((X @ U) * s, Vt), f"q={power_iterations}"

    return solve


def solve_exact(W: NDArray[Any], rank: int) -> tuple[Factors, str]:
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank], Vt[:rank]), "gesdd"


def solve_svds(W: NDArray[Any], rank: int) -> tuple[Factors, str]:
    U, s, Vt = scipy.sparse.linalg.svds(W, k=rank, tol=1e-2, rng=np.random.default_rng(0))
    return (U * s, Vt), "arpack, tol=0.01"


def _sklearn(W: NDArray[Any], rank: int, iterations: int) -> Factors:
    U, s, Vt = randomized_svd(W, rank, n_oversamples=10, n_iter=iterations, random_state=0)
    return U * s, Vt


def _torch(W: NDArray[Any], rank: int, iterations: int) -> Factors:
    import torch

    torch.manual_seed(0)
    columns = min(rank + 10, min(W.shape))
    U, s, V = torch.svd_lowrank(torch.from_numpy(W), q=columns, niter=iterations)
    return (U[:, :rank] * s[:rank]).numpy(), V[:, :rank].T.numpy()


def peers() -> list[Peer]:
    """scikit-learn, and torch where it is installed."""
    found = [Peer("sklearn", _sklearn)]
    if importlib.util.find_spec("torch") is not None:
        found.append(Peer("torch", _torch))
    return found
