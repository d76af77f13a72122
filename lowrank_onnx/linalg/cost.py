"""Which of the accurate solvers is cheapest for a shape and rank: a cost model in equivalent product flops.

Each term counts floating-point operations, weighted by how much slower than a large matrix product they run. The
weights were measured with OpenBLAS on x86-64; ratios between them, not absolute rates, decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lowrank_onnx.linalg.krylov import LARGE_RANK, block_width, planned_dimension

Plan: TypeAlias = Literal["eigen", "krylov-direct", "krylov-gram"]

EIGEN_CUBIC, EIGEN_SQUARE = 10.5, 4500.0
"""Of k**3 and k**2 for the eigendecomposition of a k x k matrix: memory and tiny steps bound it, not arithmetic."""

NARROW_COLUMNS = 22.0
"""A product with a block of b columns runs at b / (b + NARROW_COLUMNS) of the rate of a large one."""

CHECKS, CHECKS_OF_LARGE = 3.2, 1.2
"""Eigendecompositions of the projected matrix that a Krylov space typically takes before it is found large enough."""

SYMMETRIC_WEIGHT = 1.2
"""Of m n**2 for a Gram matrix of an m x n matrix, mirroring its triangle included."""

LARGEST_SHARE = 0.85
"""Of the order: a larger Krylov space is never worth building."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A solver and its predicted cost in equivalent flops; `limit` is the dimension up to which its space may grow."""

    plan: Plan
    cost: float
    limit: int


def rank_plans(rows: int, columns: int, rank: int) -> list[Choice]:
    """The solvers that can serve a tall (rows, columns) matrix at `rank`, cheapest first; "eigen" always can.

    A Krylov space may grow until it has cost as much as "eigen" would have: a bad guess costs twice the best, at most.
    """
    m, n, r = float(rows), float(columns), float(rank)
    eigen = SYMMETRIC_WEIGHT * m * n * n + eigen_cost(n) + 2 * m * n * r
    choices = [Choice("eigen", eigen, columns)]
    step = block_width(rank, rows * columns)
    depth = planned_dimension(rank, step)
    largest = int(LARGEST_SHARE * columns)
    plans: tuple[Plan, ...] = ("krylov-direct", "krylov-gram")
    for plan in plans if depth + step <= largest else ():
        limit = depth + step
        while limit + step <= largest and _krylov_cost(rows, columns, rank, limit + step, plan) <= eigen:
            limit += step
        choices.append(Choice(plan, _krylov_cost(rows, columns, rank, depth + step, plan), limit))
    return sorted(choices, key=lambda choice: choice.cost)


def _krylov_cost(rows: int, columns: int, rank: int, depth: int, plan: Plan) -> float:
    """Equivalent flops of a Krylov space of `depth` dimensions and the triplets from it."""
    m, n, r, d = float(rows), float(columns), float(rank), float(depth)
    width = float(block_width(rank, rows * columns))
    narrow = 1.0 + NARROW_COLUMNS / width
    checks = CHECKS_OF_LARGE if rank > LARGE_RANK else CHECKS
    # Each block is orthogonalized once against the whole space, and its Gram matrix is taken twice in float64.
    small = narrow * 3 * n * d * d + 8 * n * d * width + checks * eigen_cost(d) + 2 * n * d * r
    if plan == "krylov-gram":
        return small + SYMMETRIC_WEIGHT * m * n * n + narrow * 2 * n * n * d + 2 * m * n * r
    return small + narrow * 4 * m * n * d + 2 * m * d * r


def eigen_cost(size: float) -> float:
    """Equivalent flops of a symmetric eigendecomposition."""
    return EIGEN_CUBIC * size**3 + EIGEN_SQUARE * size**2
