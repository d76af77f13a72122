"""Which of the accurate solvers is cheapest for a shape and rank: a cost model in equivalent product flops.

Each term counts floating-point operations, weighted by how much slower than a large matrix product they run. The
weights were measured with OpenBLAS on x86-64; ratios between them, not absolute rates, decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lowrank_onnx.linalg.chebyshev import WIDE, filtered_columns, has_room
from lowrank_onnx.linalg.krylov import LARGE_RANK, block_width, planned_dimension

Plan: TypeAlias = Literal["eigen", "chebyshev", "krylov-direct", "krylov-gram"]

EIGEN_CUBIC, EIGEN_SQUARE, EIGEN_VECTORS = 5.1, 3900.0, 4.2
"""Of k**3, k**2 and k**2 r for r eigenvectors of a k x k matrix: memory and tiny steps bound it, not arithmetic."""

NARROW_COLUMNS = 22.0
"""A product with a block of b columns runs at b / (b + NARROW_COLUMNS) of the rate of a large one."""

CHECKS, CHECKS_OF_LARGE = 3.2, 1.2
"""Eigendecompositions of the projected matrix that a Krylov space typically takes before it is found large enough."""

SYMMETRIC_WEIGHT = 1.25
"""Of m n**2 for a Gram matrix of an m x n matrix, mirroring its triangle included."""

FILTER_PRODUCTS = 6.0
"""Products with the Gram matrix that a filtered subspace typically takes, the first plain ones included."""

FILTER_BASES, BASIS_SQUARE, BASIS_CUBIC = 4.0, 4.6, 6.0
"""Orthonormalizations among them, and the weights of n l**2 and l**3 of one: its Gram matrix is taken in float64."""

FILTER_EIGEN = 1.6
"""Eigendecompositions of the projected matrix, the first of which needs no vectors."""

FILTER_PROBE, FILTER_FIXED = 300.0, 3e8
"""Weight of n**2 for measuring what is left behind, and of all that doesn't depend on the size."""

KRYLOV_RISK = 1.7
"""Times the cost of a Krylov space of the planned dimension is what one costs for weights that decay more slowly."""

LARGEST_SHARE = 0.85
"""Of the order: a larger Krylov space is never worth building."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A solver and its predicted cost in equivalent flops; `limit` is the dimension up to which its space may grow."""

    plan: Plan
    cost: float
    limit: int


def rank_plans(rows: int, columns: int, rank: int, tolerance: float = 1.02) -> list[Choice]:
    """The solvers that can serve a tall (rows, columns) matrix at `rank`, cheapest first; "eigen" always can.

    A Krylov space may grow until it has cost as much as the best of the others would have: a bad guess costs twice
    the best, at most.
    """
    m, n, r = float(rows), float(columns), float(rank)
    eigen = SYMMETRIC_WEIGHT * m * n * n + eigen_cost(n, r) + 2 * m * n * r
    choices = [Choice("eigen", eigen, columns)]
    if has_room(rank, columns):
        choices.append(Choice("chebyshev", _filter_cost(m, n, r), filtered_columns(rank)))
    fallback = min(choice.cost for choice in choices)
    step = block_width(rank, rows * columns)
    depth = planned_dimension(rank, step, tolerance)
    largest = int(LARGEST_SHARE * columns)
    plans: tuple[Plan, ...] = ("krylov-direct", "krylov-gram")
    for plan in plans if depth + step <= largest else ():
        limit = depth + step
        while limit + step <= largest and _krylov_cost(rows, columns, rank, limit + step, plan) <= fallback:
            limit += step
        choices.append(Choice(plan, KRYLOV_RISK * _krylov_cost(rows, columns, rank, depth + step, plan), limit))
    return sorted(choices, key=lambda choice: choice.cost)


def _filter_cost(m: float, n: float, r: float) -> float:
    """Equivalent flops of a Chebyshev filtered subspace and the triplets from it."""
    columns = float(filtered_columns(int(r)))
    bases = FILTER_BASES * (BASIS_SQUARE * n * columns**2 + BASIS_CUBIC * columns**3)
    if m <= WIDE * n:
        projection = 2 * m * n * columns + (m + n) * columns**2 + 2 * (m + n) * columns * r
    else:
        projection = 2 * n * n * columns + 3 * n * columns**2 + 2 * n * columns * r + 2 * m * n * r
    products = SYMMETRIC_WEIGHT * m * n * n + FILTER_PRODUCTS * 2 * n * n * columns
    small = FILTER_EIGEN * eigen_cost(columns, columns) + FILTER_PROBE * n * n + FILTER_FIXED
    return products + bases + projection + small


def _krylov_cost(rows: int, columns: int, rank: int, depth: int, plan: Plan) -> float:
    """Equivalent flops of a Krylov space of `depth` dimensions and the triplets from it."""
    m, n, r, d = float(rows), float(columns), float(rank), float(depth)
    width = float(block_width(rank, rows * columns))
    narrow = 1.0 + NARROW_COLUMNS / width
    checks = CHECKS_OF_LARGE if rank > LARGE_RANK else CHECKS
    # Each block is orthogonalized once against the whole space, and its Gram matrix is taken twice in float64.
    small = narrow * 3 * n * d * d + 8 * n * d * width + checks * eigen_cost(d, r) + 2 * n * d * r
    if plan == "krylov-gram":
        return small + SYMMETRIC_WEIGHT * m * n * n + narrow * 2 * n * n * d + 2 * m * n * r
    return small + narrow * 4 * m * n * d + 2 * m * d * r


def eigen_cost(size: float, count: float) -> float:
    """Equivalent flops of the eigenvalues of a symmetric matrix and `count` eigenvectors."""
    return EIGEN_CUBIC * size**3 + EIGEN_SQUARE * size**2 + EIGEN_VECTORS * size**2 * count
