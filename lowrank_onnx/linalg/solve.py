"""From a prepared matrix to its leading triplets: the choice of a solver, and what to do where it declines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.bidiagonal import solve_bidiagonal
from lowrank_onnx.linalg.chebyshev import solve_chebyshev
from lowrank_onnx.linalg.cost import Choice, rank_plans
from lowrank_onnx.linalg.exact import solve_eigen, solve_svd
from lowrank_onnx.linalg.krylov import solve_krylov
from lowrank_onnx.linalg.rank import RankTarget
from lowrank_onnx.linalg.residual import residual_norm_estimate
from lowrank_onnx.linalg.rsi import solve_rsi
from lowrank_onnx.linalg.sketch import draw_gaussian
from lowrank_onnx.linalg.solution import Triplets

Method: TypeAlias = Literal["auto", "rsi", "rsvd", "svd", "eigen", "krylov", "chebyshev"]

WHOLE_SPECTRUM_SIZE = 1024
"""Up to this smaller side the rank for a target is read from the whole spectrum; above it is searched by doubling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """How to solve; see `lowrank_onnx.linalg.factor`."""

    method: Method = "auto"
    power_iterations: int = 4
    oversampling: int = 0
    tolerance: float = 1.02
    seed: int = 0


def solve(backend: Backend, W: DeviceArray, rank: int, options: SolverOptions) -> Triplets:
    """The leading `rank` triplets of W (in, out)."""
    if options.method in ("rsi", "rsvd"):
        q = 1 if options.method == "rsvd" else options.power_iterations
        columns = min(rank + options.oversampling, *W.shape)
        sketch = backend.to_device(draw_gaussian(W.shape[1], columns, options.seed, backend.numpy_dtype(W)))
        return solve_rsi(backend, W, sketch, q).named(f"{options.method}(q={q}, p={columns - rank})")
    if options.method == "svd":
        return solve_svd(backend, W, rank)
    if W.shape[0] >= W.shape[1]:
        return _solve_tall(backend, W, rank, options)
    return turned(backend, _solve_tall(backend, W.T, rank, options))


def solve_for_target(
    backend: Backend, W: DeviceArray, energy: float, target: RankTarget, options: SolverOptions
) -> tuple[Triplets, int]:
    """Triplets of W (in, out), and the smallest rank at which they reach the target.

    `energy` is ``||W||_F**2``. Where the target lies below what the solver's triplets leave out at full rank, that is
    the rank.
    """
    full = min(W.shape)
    tall = W.shape[0] >= W.shape[1]
    if options.method in ("auto", "eigen") and (full <= WHOLE_SPECTRUM_SIZE or options.method == "eigen"):

        def find(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
            return target.smallest_rank(values, energy) or full

        triplets = solve_eigen(backend, W if tall else W.T, find)
        if triplets is not None:
            found = triplets.values.shape[0]
            return (triplets if tall else turned(backend, triplets)), found
    rank = max(1, full // 8)
    while True:
        triplets = solve(backend, W, rank, options)
        values = backend.to_host(triplets.values).astype(np.float64)[:rank]
        reached = target.smallest_rank(values, energy)
        if reached is not None and target.spectral is not None and options.method in ("rsi", "rsvd"):
            reached = _measured_spectral_rank(backend, W, triplets, reached, target.spectral, options.seed)
        if reached is not None or rank == full:
            return triplets, reached or full
        rank = min(2 * rank, full)


def _measured_spectral_rank(
    backend: Backend, W: DeviceArray, triplets: Triplets, rank: int, share: float, seed: int
) -> int | None:
    """The first rank from `rank` on whose residual is measured to reach the target: RSI's values are too small."""
    allowed = share * float(triplets.values[0])
    for candidate in range(rank, triplets.values.shape[0]):
        left, right = triplets.scaled_left[:, :candidate], triplets.right[:, :candidate]
        if residual_norm_estimate(backend, W, left, right, seed) <= allowed:
            return candidate
    return None


def turned(backend: Backend, triplets: Triplets) -> Triplets:
    """The triplets of the transposed matrix."""
    values = triplets.values
    safe = backend.xp.where(values > 0, values, backend.xp.ones_like(values))
    scaled_left, right = triplets.right * values, triplets.scaled_left / safe
    return Triplets(scaled_left, values, right, triplets.solver, triplets.residual, triplets.residual_rank)


def _solve_tall(backend: Backend, W: DeviceArray, rank: int, options: SolverOptions) -> Triplets:
    """The leading `rank` triplets of a tall W (m, n), m >= n, by the cheapest solver that the method allows."""
    choices = rank_plans(W.shape[0], W.shape[1], rank, options.tolerance)
    if options.method != "auto":
        choices = [c for c in choices if c.plan.startswith(options.method)]
    tried: set[str] = set()
    for choice in choices:
        kind = choice.plan.partition("-")[0]
        if kind == "eigen":
            break
        # Where a Krylov space has reached its limit, one from the same matrix by other products would too.
        triplets = None if kind in tried else _approximated(backend, W, rank, choice, options)
        if triplets is not None:
            return triplets
        tried.add(kind)
    triplets = solve_eigen(backend, W, rank)
    if triplets is None:
        triplets = solve_bidiagonal(
            backend, W, rank, tolerance=options.tolerance, seed=options.seed, limit=W.shape[1] * 3 // 4
        )
    return triplets if triplets is not None else solve_svd(backend, W, rank)


def _approximated(
    backend: Backend, W: DeviceArray, rank: int, choice: Choice, options: SolverOptions
) -> Triplets | None:
    if choice.plan == "chebyshev":
        return solve_chebyshev(backend, W, rank, tolerance=options.tolerance, seed=options.seed)
    return solve_krylov(
        backend,
        W,
        rank,
        tolerance=options.tolerance,
        seed=options.seed,
        through_gram=choice.plan == "krylov-gram",
        limit=choice.limit,
    )
