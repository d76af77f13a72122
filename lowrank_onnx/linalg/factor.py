"""``factor``: the validated front door of the factorization kernel."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceName, select_backend
from lowrank_onnx.linalg.bidiagonal import solve_bidiagonal
from lowrank_onnx.linalg.cost import Choice, krylov_cost, rank_plans
from lowrank_onnx.linalg.exact import solve_eigen, solve_svd
from lowrank_onnx.linalg.factorization import Factorization
from lowrank_onnx.linalg.krylov import block_width, planned_dimension, solve_krylov
from lowrank_onnx.linalg.precision import Prepared, prepare
from lowrank_onnx.linalg.residual import residual_energy, residual_norm_estimate
from lowrank_onnx.linalg.rsi import solve_rsi
from lowrank_onnx.linalg.sketch import draw_gaussian
from lowrank_onnx.linalg.solution import Triplets

Method: TypeAlias = Literal["auto", "rsi", "rsvd", "svd", "eigen", "krylov"]

CANCELLING_SHARE = 1e-3
"""Below this share of uncaptured energy, energy minus captured loses digits and the residual itself is measured."""


def factor(
    W: NDArray[Any],
    rank: int | None = None,
    *,
    method: Method = "auto",
    power_iterations: int = 4,
    oversampling: int | None = None,
    tolerance: float = 1.02,
    seed: int = 0,
    device: DeviceName = "auto",
) -> Factorization:
    """Low-rank factors ``W ~ left @ right`` of an (in, out) matrix, with their measured errors.

    Parameters
    ----------
    W : (in, out), float16, bfloat16, float32 or float64
        Any strides; a read-only memory map will do. Accumulated in float32, or float64 for float64.
    rank : from 1 to min(in, out).
    method :
        - ``"auto"``: the cheapest of the exact and near-exact solvers below, by a cost model, such that the normalised
          spectral error ``||W - left @ right||_2 / sigma_(rank+1)`` is at most `tolerance`. Small singular values that
          squaring would lose are noticed and computed in higher precision or without squaring.
        - ``"krylov"``: block Krylov iteration to `tolerance`; the exact solver where it would need the whole space.
        - ``"eigen"``: leading eigenvectors of the smaller Gram matrix; exact.
        - ``"svd"``: the full SVD; exact.
        - ``"rsi"``: randomized subspace iteration as published (arXiv 2604.02659), `power_iterations` times, on a
          sketch of rank + `oversampling` columns. The reference: slower than ``"auto"`` and less accurate.
        - ``"rsvd"``: the same with one power iteration.
    power_iterations : q of ``"rsi"``, at least 1; ignored by the others.
    oversampling : p of ``"rsi"`` and ``"rsvd"``, default 0, as published; ignored by the others.
    tolerance : above 1, for ``"auto"`` and ``"krylov"``.
    seed : of the Gaussian sketch, drawn on the host: the same seed gives the same bytes on one machine.
    device : "cpu", "cuda" (CuPy), or "auto", which takes CUDA where it is usable.

    Raises
    ------
    FactorizationError
        for a matrix that is not 2-D, is empty, holds NaN or infinity or has another dtype, a rank it doesn't have, or
        an option out of range.
    MissingDependencyError
        for "cuda" without CuPy or without a CUDA device.
    """
    _check_options(W, rank, method, power_iterations, oversampling, tolerance)
    assert rank is not None
    backend = select_backend(device)
    prepared = prepare(backend, W)
    if prepared.energy == 0.0:
        return _zero(prepared, W.shape, rank, backend)
    with backend.threads_for(W.shape, rank):
        columns = min(rank + (oversampling or 0), min(W.shape))
        triplets = _solve(backend, prepared.matrix, rank, method, power_iterations, columns, tolerance, seed)
        return _finish(backend, prepared, triplets, rank, seed)


def _check_options(
    W: NDArray[Any],
    rank: int | None,
    method: str,
    power_iterations: int,
    oversampling: int | None,
    tolerance: float,
) -> None:
    if W.ndim != 2 or W.size == 0:
        raise FactorizationError(f"array of shape {W.shape}: expected a matrix (in, out) with no empty side")
    if rank is None or not 1 <= rank <= min(W.shape):
        raise FactorizationError(
            f"rank {rank} for a matrix of shape {W.shape}: expected 1 to {min(W.shape)}, its smaller side"
        )
    if method not in get_args(Method):
        raise FactorizationError(f"method {method!r}: expected one of {', '.join(get_args(Method))}")
    if power_iterations < 1:
        raise FactorizationError(f"power_iterations {power_iterations}: expected at least 1 (1 is RSVD)")
    if oversampling is not None and oversampling < 0:
        raise FactorizationError(f"oversampling {oversampling}: expected 0 or more")
    if not 1.0 < tolerance < math.inf:
        raise FactorizationError(f"tolerance {tolerance:g}: expected a normalised error above 1, e.g. 1.02")


def _solve(
    backend: Backend,
    W: DeviceArray,
    rank: int,
    method: Method,
    power_iterations: int,
    columns: int,
    tolerance: float,
    seed: int,
) -> Triplets:
    if method in ("rsi", "rsvd"):
        q = 1 if method == "rsvd" else power_iterations
        sketch = backend.to_device(draw_gaussian(W.shape[1], columns, seed, backend.numpy_dtype(W)))
        return solve_rsi(backend, W, sketch, q).named(f"{method}(q={q}, p={columns - rank})")
    if method == "svd":
        return solve_svd(backend, W, rank)
    if W.shape[0] >= W.shape[1]:
        return solve_tall(backend, W, rank, method, tolerance, seed)
    turned = solve_tall(backend, W.T, rank, method, tolerance, seed)
    values = turned.values
    safe = backend.xp.where(values > 0, values, backend.xp.ones_like(values))
    return Triplets(
        turned.right * values, values, turned.scaled_left / safe, turned.solver, turned.residual, turned.residual_rank
    )


def solve_tall(
    backend: Backend, W: DeviceArray, rank: int, method: Literal["auto", "eigen", "krylov"], tolerance: float, seed: int
) -> Triplets:
    """The leading `rank` triplets of a tall W (m, n), m >= n, by the cheapest solver that `method` allows."""
    choices = rank_plans(*W.shape, rank)
    allowed = {"auto": "", "eigen": "eigen", "krylov": "krylov"}[method]
    choice = next((c for c in choices if c.plan.startswith(allowed)), choices[0])
    triplets: Triplets | None = None
    if choice.plan != "eigen":
        triplets = solve_krylov(
            backend,
            W,
            rank,
            tolerance=tolerance,
            seed=seed,
            through_gram=choice.plan == "krylov-gram",
            limit=_affordable(choice, choices, W.shape, rank),
        )
    if triplets is None:
        triplets = solve_eigen(backend, W, rank)
    if triplets is None:
        triplets = solve_bidiagonal(backend, W, rank, tolerance=tolerance, seed=seed, limit=choice.limit)
    return triplets if triplets is not None else solve_svd(backend, W, rank)


def _affordable(choice: Choice, choices: list[Choice], shape: tuple[int, ...], rank: int) -> int:
    """The dimension at which a growing Krylov space has cost as much as the exact solver would have."""
    exact = next(c.cost for c in choices if c.plan == "eigen")
    through_gram = choice.plan == "krylov-gram"
    depth, step = planned_dimension(rank), block_width(rank)
    while depth + 2 * step <= choice.limit:
        if krylov_cost(shape[0], shape[1], rank, depth + step, through_gram=through_gram) > exact:
            break
        depth += step
    return depth + step


def _finish(backend: Backend, prepared: Prepared, triplets: Triplets, rank: int, seed: int) -> Factorization:
    """Truncate, measure and balance; undo the scaling of `prepare`."""
    xp = backend.xp
    W = prepared.matrix
    values = triplets.values[:rank]
    scaled_left, directions = triplets.scaled_left[:, :rank], triplets.right[:, :rank]
    captured = float(xp.sum(xp.astype(values, xp.float64) ** 2))
    missed = 1.0 - captured / prepared.energy
    if missed < CANCELLING_SHARE:
        missed = residual_energy(backend, W, scaled_left, directions.T) / prepared.energy
    spectral = triplets.residual if triplets.residual_rank == rank else None
    if spectral is None:
        spectral = residual_norm_estimate(backend, W, scaled_left, directions, seed)
    root = xp.sqrt(values)
    left = scaled_left / xp.where(root > 0, root, xp.ones_like(root))
    right = (directions * root).T
    largest = float(values[0])
    scale = 2.0 ** (prepared.exponent / 2)
    return Factorization(
        left=backend.to_host(left) * scale,
        right=backend.to_host(right) * scale,
        singular_values=np.ldexp(backend.to_host(values), prepared.exponent),
        energy=prepared.energy * 2.0 ** (2 * prepared.exponent),
        relative_error=math.sqrt(max(missed, 0.0)),
        spectral_error=spectral / largest if largest > 0.0 else 0.0,
        solver=triplets.solver,
    )


def _zero(prepared: Prepared, shape: tuple[int, ...], rank: int, backend: Backend) -> Factorization:
    dtype = backend.numpy_dtype(prepared.matrix)
    return Factorization(
        left=np.zeros((shape[0], rank), dtype),
        right=np.zeros((rank, shape[1]), dtype),
        singular_values=np.zeros(rank, dtype),
        energy=0.0,
        relative_error=0.0,
        spectral_error=0.0,
        solver="zero matrix",
    )
