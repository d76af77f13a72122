"""Conv input and Conv Tucker-2: a 1x1 convolution to fewer input channels before the one with the kernel.

**conv input** is 1x1 to r channels, then the kernel from those to all outputs: r (channels + taps x out) weights, the
mirror image of conv channel. **conv Tucker-2** (Kim et al., arXiv 1511.06530) also computes fewer output channels, r',
and a second 1x1 convolution spreads them: r channels + r taps r' + r' out.

One rank says both: r' is out sqrt(r / channels), rounded up to a multiple of 16 where there are outputs enough. On the
convolutions of the shipped VGG, with the exact errors of all pairs of ranks, the best pairs at up to a quarter of the
weights lie near that curve. At larger budgets they keep all outputs, and that is conv input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowrank_onnx.forms.conv_chain import ConvChain, ConvGeometry, Link
from lowrank_onnx.types import MatrixShape

INPUT = "channels"
"""The family of conv input: a leading factor on the channels."""

TUCKER = "tucker"
"""The family of Tucker-2, whose errors by rank are its own."""


@dataclass(frozen=True, slots=True)
class ConvInput(ConvChain):
    """Parts "first" (groups, channels, r) and "second" (groups, r x taps, out)."""

    geometry: ConvGeometry

    @property
    def name(self) -> str:
        """How users know it."""
        return "conv_input"

    @property
    def family(self) -> str:
        """A leading factor on the channels."""
        return INPUT

    @property
    def part_names(self) -> tuple[str, ...]:
        """In the order of the convolutions."""
        return ("first", "second")

    @property
    def axis_order(self) -> tuple[int, ...]:
        """As they are."""
        return self.geometry.axes

    def links(self, shape: MatrixShape, rank: int) -> tuple[Link, ...]:
        """1x1, then the whole kernel."""
        return (
            Link("first", self.geometry.channels, rank, ()),
            Link("second", rank, shape.out_features, self.geometry.axes),
        )

    def largest_rank(self, shape: MatrixShape) -> int:
        """The smaller side of the unfolded weight."""
        geometry = self.geometry
        return min(geometry.channels, geometry.taps(geometry.axes) * shape.out_features)


@dataclass(frozen=True, slots=True)
class ConvTucker(ConvChain):
    """Parts "first" (groups, channels, r), "core" (groups, r x taps, r') and "last" (groups, r', out)."""

    geometry: ConvGeometry

    @property
    def name(self) -> str:
        """How users know it."""
        return "conv_tucker"

    @property
    def family(self) -> str:
        """A Tucker decomposition in two of the modes."""
        return TUCKER

    @property
    def part_names(self) -> tuple[str, ...]:
        """In the order of the convolutions."""
        return ("first", "core", "last")

    @property
    def axis_order(self) -> tuple[int, ...]:
        """As they are."""
        return self.geometry.axes

    def output_rank(self, shape: MatrixShape, rank: int) -> int:
        """r', at most what r can feed; it never falls as r grows, and at the largest rank it is all outputs."""
        out = shape.out_features
        multiple = next(multiple for multiple in (16, 8, 4, 2, 1) if multiple * 4 <= out or multiple == 1)
        near = math.ceil(out * math.sqrt(rank / self.largest_rank(shape)) / multiple) * multiple
        return min(near, out, rank * self.geometry.taps(self.geometry.axes))

    def links(self, shape: MatrixShape, rank: int) -> tuple[Link, ...]:
        """1x1, the kernel, 1x1."""
        inner = self.output_rank(shape, rank)
        return (
            Link("first", self.geometry.channels, rank, ()),
            Link("core", rank, inner, self.geometry.axes),
            Link("last", inner, shape.out_features, ()),
        )

    def largest_rank(self, shape: MatrixShape) -> int:
        """All channels, where the outputs leave them that many directions."""
        geometry = self.geometry
        return min(geometry.channels, geometry.taps(geometry.axes) * shape.out_features)
