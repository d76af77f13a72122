"""Conv spatial: a convolution over one kernel axis to r channels, then one over the other axes.

A 3x3 convolution becomes 3x1 and 1x3: r (3 channels + 3 out) weights. (Jaderberg, Vedaldi and Zisserman, arXiv
1405.3866, scheme 2; the factorization is of `lowrank_onnx.linalg.leading`.) It needs at least two kernel axes of more
than one element: with one, it is the convolution to r channels followed by a 1x1 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.forms.conv_chain import ConvChain, ConvGeometry, Link
from lowrank_onnx.types import MatrixShape

SPATIAL = "channels and a kernel axis"
"""The family of conv spatial: a leading factor on the channels and one kernel axis."""


@dataclass(frozen=True, slots=True)
class ConvSpatial(ConvChain):
    """Parts "first" (groups, channels x taps of `axis`, r) and "second" (groups, r x the other taps, out)."""

    geometry: ConvGeometry
    axis: int

    @property
    def name(self) -> str:
        """How users know it."""
        return "conv_spatial"

    @property
    def family(self) -> str:
        """A leading factor on the channels and one kernel axis."""
        return SPATIAL

    @property
    def part_names(self) -> tuple[str, ...]:
        """In the order of the convolutions."""
        return ("first", "second")

    @property
    def axis_order(self) -> tuple[int, ...]:
        """`axis`, then the others."""
        return (self.axis, *self._others)

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple(axis for axis in self.geometry.axes if axis != self.axis)

    def links(self, shape: MatrixShape, rank: int) -> tuple[Link, ...]:
        """Over `axis` to r channels, then over the other axes."""
        return (
            Link("first", self.geometry.channels, rank, (self.axis,)),
            Link("second", rank, shape.out_features, self._others),
        )

    def largest_rank(self, shape: MatrixShape) -> int:
        """The smaller side of the unfolded weight."""
        geometry = self.geometry
        first = geometry.channels * geometry.kernel[self.axis]
        return min(first, geometry.taps(self._others) * shape.out_features)


def spatial_form(geometry: ConvGeometry, shape: MatrixShape) -> ConvSpatial | None:
    """The form with the kernel axis first that costs least at equal rank; None where it makes no sense."""
    wide = [axis for axis, size in enumerate(geometry.kernel) if size > 1]
    if len(wide) < 2:
        return None
    return min((ConvSpatial(geometry, axis) for axis in wide), key=lambda form: form.macs(shape, 1, 1 << 40))
