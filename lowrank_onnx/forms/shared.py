"""Shared input: weights that read the same tensor share the first factor, ``y_i = (x @ L) @ R_i``.

It is the pair of the concatenated weight ``[W_1 W_2 ...] ~ L [R_1 R_2 ...]``: r (in + out_1 + out_2 + ...) weights in
all, and one node fewer for each weight but the first. All weights of the bundle are written so at one rank, or none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowrank_onnx.forms.form import Form
from lowrank_onnx.types import Array, MatrixShape

SHARED = "shared"
"""The family of the concatenated weight's factorization."""


@dataclass(frozen=True, slots=True)
class Shared(Form):
    """One weight's place in a bundle. Parts "left" (1, in, r), which the lead alone stores, and "right" (1, r, out).

    Attributes
    ----------
    bundle_name : by the node that comes first.
    lead : whether this weight's node comes first, and computes ``x @ L`` for all.
    members : number of weights.
    together : columns of the concatenated weight.
    """

    bundle_name: str
    lead: bool
    members: int
    together: int
    name: str = "shared"
    family: str = SHARED

    @property
    def bundle(self) -> str:
        """Its name."""
        return self.bundle_name

    @property
    def bundle_size(self) -> int:
        """Number of the weights that are written together."""
        return self.members

    def part_shapes(self, shape: MatrixShape, rank: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part that is stored for this weight at rank r, the groups first."""
        left = {"left": (1, shape.in_features, rank)} if self.lead else {}
        return {**left, "right": (1, rank, shape.out_features)}

    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest rank at which the bundle stores fewer weights than its dense ones."""
        return (shape.in_features * self.together - 1) // (shape.in_features + self.together)

    def largest_rank(self, shape: MatrixShape) -> int:
        """min(in, out_1 + out_2 + ...)."""
        return min(shape.in_features, self.together)

    def approximate(self, parts: Mapping[str, Array]) -> Array:
        """L R_i."""
        product: Array = parts["left"] @ parts["right"]
        return product

    def factors(self, parts: Mapping[str, Array]) -> tuple[Array, ...]:
        """L and R_i."""
        return parts["left"], parts["right"]
