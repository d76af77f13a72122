"""The pivoted form: r of the outputs are computed, and the others are combinations of those.

A rank-r product L R whose columns start, ..., start + r - 1 (the pivots) make an invertible r x r block B of R is
exactly ``z = x @ (L B)``, ``y = concat(z @ D1, z, z @ D2)`` with ``[D1 I D2] = inverse(B) R``: the identity block is
neither stored nor multiplied by. That takes r (in + out - r) weights and multiply-accumulates per position: fewer than
the pair's r (in + out), and fewer than dense at every rank below min(in, out). (PIFA, arXiv 2501.19090, takes any
columns as pivots; a contiguous block needs no permutation of the outputs. Where no block will do, the outputs may come
in another order, if what reads them follows it.)

A bias b is added once to the pivots, and what the others see of it through D is taken off theirs:
``z' = x @ (L B) + b_pivots``, ``y1 = z' @ D1 + (b1 - b_pivots @ D1)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.forms.form import MATRIX, Form
from lowrank_onnx.types import Array, MatrixShape

LEAST_SAVING = 1 / 32
"""Of the weights. The last ranks save next to nothing, and take twice the time: their singular values are so small that
they are only found in float64."""


@dataclass(frozen=True, slots=True)
class Pivoted(Form):
    """Parts "left" (1, in, r), "before" (1, r, start) and "after" (1, r, out - r - start), where they aren't empty.

    `start` is the first pivot; it is settled for each weight and rank by the values, and so is `order`: which output
    comes first, second, ...; empty where they come as they are. One group only: the outputs of several would lie
    interleaved.
    """

    start: int = 0
    order: tuple[int, ...] = ()
    name: str = "pivoted"
    family: str = MATRIX

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of a general block of pivots."""
        return ("left", "before", "after")

    def part_shapes(self, shape: MatrixShape, rank: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part at rank r, the groups first."""
        after = shape.out_features - rank - self.start
        shapes = {"left": (1, shape.in_features, rank), "before": (1, rank, self.start), "after": (1, rank, after)}
        return {part: dims for part, dims in shapes.items() if dims[-1]}

    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest at which it saves `LEAST_SAVING`: (in - r)(out - r) weights, none at min(in, out)."""
        rows, columns = shape.in_features, shape.out_features
        least = math.ceil(LEAST_SAVING * rows * columns)
        return (rows + columns - math.isqrt((rows - columns) ** 2 + 4 * least - 1) - 1) // 2

    def approximate(self, parts: Mapping[str, Array]) -> Array:
        """[L' D1, L', L' D2], with the columns where they were."""
        left = parts["left"]
        return self._in_place(left, {part: left @ parts[part] for part in ("before", "after") if part in parts})

    def factors(self, parts: Mapping[str, Array]) -> tuple[Array, ...]:
        """L' and [D1, I, D2], with the columns where they were."""
        left = parts["left"]
        return left, self._in_place(np.eye(left.shape[-1], dtype=left.dtype)[np.newaxis], parts)

    def _in_place(self, pivots: Array, others: Mapping[str, Array]) -> Array:
        """The columns of the pivots, and those "before" and "after" them, where they were."""
        blocks = (others.get("before"), pivots, others.get("after"))
        together = np.concatenate([block for block in blocks if block is not None], axis=-1)
        return together[..., np.argsort(self.order)] if self.order else together

    def ordered(self, outputs: Array) -> Array:
        """What has the outputs on its last axis, in the order in which they come."""
        return outputs[..., self.order] if self.order else outputs

    def write_bias(self, part: str, bias: Array, parts: Mapping[str, Array]) -> Array:
        """The bias of the pivots ("bias"), of the outputs before them or of those after."""
        rank = parts["left"].shape[-1]
        bias = self.ordered(bias)
        pivots = bias[self.start : self.start + rank]
        if part == "bias":
            return pivots
        if part == "bias_before":
            rest: Array = bias[: self.start] - pivots @ parts["before"][0]
        else:
            rest = bias[self.start + rank :] - pivots @ parts["after"][0]
        return rest


PIVOTED = Pivoted()
