"""Which exact or near-exact solver is cheapest for a shape and rank: a cost model in equivalent product flops.

Each term counts floating-point operations, weighted by how much slower than a large matrix product they run. The
weights were measured with OpenBLAS on x86-64; ratios between them, not absolute rates, decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lowrank_onnx.linalg.krylov import block_width, planned_dimension

Plan: TypeAlias = Literal["eigen", "krylov-direct", "krylov-gram"]

EIGEN_WEIGHT = 12.0
"""Of k**3 for the eigendecomposition of a k x k matrix: half of a tridiagonalization is bound by memory."""

NARROW_WEIGHT = 1.5
"""Of products with blocks of a few dozen columns."""

SYMMETRIC_WEIGHT = 1.2
"""Of m n**2 for a Gram matrix of an m x n matrix, mirroring its triangle included."""

LARGEST_SHARE = 0.85
"""Of the order: a larger Krylov space is never worth building."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A solver and its predicted cost in equivalent flops; `limit` is the dimension up to which a space may grow."""

    plan: Plan
    cost: float
    limit: int


def rank_plans(rows: int, columns: int, rank: int) -> list[Choice]:
    """The solvers that can serve a tall (rows, columns) matrix at `rank`, cheapest first; "eigen" always can."""
    m, n, r = float(rows), float(columns), float(rank)
    eigen = SYMMETRIC_WEIGHT * m * n * n + EIGEN_WEIGHT * n**3 + 2 * m * n * r
    choices = [Choice("eigen", eigen, columns)]
    depth = planned_dimension(rank)
    if depth + block_width(rank) <= LARGEST_SHARE * columns:
        limit = int(LARGEST_SHARE * columns)
        direct = krylov_cost(rows, columns, rank, depth, through_gram=False)
        gram = krylov_cost(rows, columns, rank, depth, through_gram=True)
        choices += [Choice("krylov-direct", direct, limit), Choice("krylov-gram", gram, limit)]
    return sorted(choices, key=lambda choice: choice.cost)


def krylov_cost(rows: int, columns: int, rank: int, depth: int, *, through_gram: bool) -> float:
    """Equivalent flops of a Krylov space of `depth` dimensions and the triplets from it."""
    m, n, r, d = float(rows), float(columns), float(rank), float(depth + block_width(rank))
    small = 3 * n * d * d + EIGEN_WEIGHT * d**3 + 2 * n * d * r
    if through_gram:
        return small + SYMMETRIC_WEIGHT * m * n * n + NARROW_WEIGHT * 2 * n * n * d + 2 * m * n * r
    return small + NARROW_WEIGHT * 4 * m * n * d + 2 * m * d * r
