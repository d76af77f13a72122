"""The pair: ``x @ W`` becomes ``(x @ L) @ R`` with L (in, r) and R (r, out).

Parameters and multiply-accumulates of one position are both groups * r * (in + out), against groups * in * out when
dense; so a pair pays below r = in * out / (in + out) and nowhere else.
"""

from __future__ import annotations

from lowrank_onnx.types import MatrixShape


def parameters(shape: MatrixShape, rank: int) -> int:
    """Weights stored at rank r, over all groups."""
    return shape.groups * rank * (shape.in_features + shape.out_features)


def macs(shape: MatrixShape, rank: int, positions: int) -> int:
    """Multiply-accumulates at rank r when the matrices are applied at `positions` positions."""
    return positions * parameters(shape, rank)


def largest_useful_rank(shape: MatrixShape) -> int:
    """The largest rank at which a pair stores fewer weights than dense; 0 where there is none."""
    product = shape.in_features * shape.out_features
    return (product - 1) // (shape.in_features + shape.out_features) if product else 0
