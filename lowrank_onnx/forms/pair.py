"""The pair: ``x @ W`` becomes ``(x @ L) @ R`` with L (in, r) and R (r, out).

Parameters and multiply-accumulates of one position are both groups * r * (in + out), against groups * in * out when
dense; so a pair pays below r = in * out / (in + out) and nowhere else.

A convolution applied to patches is the pair of its unfolded weight: its first convolution has the kernel and r
channels, its second is 1x1. A transposed convolution is the mirror image. The numbers are the pair's in both; only
their names and the nodes that write them differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowrank_onnx.forms.form import MATRIX, Form
from lowrank_onnx.types import Array, MatrixShape


@dataclass(frozen=True, slots=True)
class Pair(Form):
    """Two factors, "left" (groups, in, r) and "right" (groups, r, out)."""

    name: str = "pair"
    family: str = MATRIX

    def part_shapes(self, shape: MatrixShape, rank: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part at rank r, the groups first."""
        return {
            "left": (shape.groups, shape.in_features, rank),
            "right": (shape.groups, rank, shape.out_features),
        }

    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest rank at which a pair stores fewer weights than dense; 0 where there is none."""
        product = shape.in_features * shape.out_features
        return (product - 1) // (shape.in_features + shape.out_features) if product else 0

    def approximate(self, parts: Mapping[str, Array]) -> Array:
        """L R."""
        product: Array = parts["left"] @ parts["right"]
        return product

    def factors(self, parts: Mapping[str, Array]) -> tuple[Array, ...]:
        """L and R."""
        return parts["left"], parts["right"]


PAIR = Pair()
CONV_CHANNEL = Pair("conv_channel")
CONV_TRANSPOSE_CHANNEL = Pair("conv_transpose_channel")
