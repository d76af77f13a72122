"""Forms that split a convolution into convolutions of fewer kernel axes: what they have in common.

A convolution of a patch, (channels, kernel axes...), becomes a chain: each link is a convolution over some of the
kernel axes (over none it is 1x1), and together they cover each axis once. A link carries the stride, the dilation and
the padding of its axes and no others, so before an axis' turn comes the activation still has the input's size there.

    link     part                             runs at
    first    (channels x its axes, r)         the output's positions, times input / output size of the axes to come
    ...
    last     (r x its axes, out)              the output's positions
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from lowrank_onnx.forms.form import Form
from lowrank_onnx.types import Array, MatrixShape


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """What a convolution's cost needs beside the shape of its matrices.

    Attributes
    ----------
    channels : input channels of a group.
    kernel : size of each kernel axis.
    sizes : the sizes of input and output along each axis, or (stride, 1) where they aren't known: what counts is their
        ratio.
    """

    channels: int
    kernel: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = field(compare=False)

    @property
    def axes(self) -> tuple[int, ...]:
        """All kernel axes."""
        return tuple(range(len(self.kernel)))

    def taps(self, axes: tuple[int, ...]) -> int:
        """Kernel positions over some of the axes."""
        return math.prod(self.kernel[axis] for axis in axes)


@dataclass(frozen=True, slots=True)
class Link:
    """One convolution: `inputs` and `outputs` are the channels of a group, `axes` the kernel axes that it covers."""

    part: str
    inputs: int
    outputs: int
    axes: tuple[int, ...]


class ConvChain(Form):
    """A chain of convolutions; its parts are (groups, inputs x taps, outputs), in the links' order."""

    __slots__ = ()

    geometry: ConvGeometry

    @abstractmethod
    def links(self, shape: MatrixShape, rank: int) -> tuple[Link, ...]:
        """The convolutions at rank r, in order; together they cover each kernel axis once."""

    def part_shapes(self, shape: MatrixShape, rank: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part at rank r, the groups first."""
        return {
            link.part: (shape.groups, link.inputs * self.geometry.taps(link.axes), link.outputs)
            for link in self.links(shape, rank)
        }

    def macs(self, shape: MatrixShape, rank: int, positions: int) -> int:
        """Multiply-accumulates at rank r for an output of `positions` positions."""
        sizes, total = self.geometry.sizes, 0
        after = set(self.geometry.axes)
        for link in self.links(shape, rank):
            after.difference_update(link.axes)  # along those its output is still as large as the chain's input
            at = math.prod(size if axis in after else out for axis, (size, out) in enumerate(sizes))
            total += at * shape.groups * link.inputs * self.geometry.taps(link.axes) * link.outputs
        return round(Fraction(positions * total, math.prod(out for _, out in sizes)))

    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest rank at which it stores fewer weights than dense; 0 where there is none."""
        low, high = 0, self.largest_rank(shape)
        while low < high:
            middle = (low + high + 1) // 2
            if self.parameters(shape, middle) < shape.parameters:
                low = middle
            else:
                high = middle - 1
        return low

    def approximate(self, parts: Mapping[str, Array]) -> Array:
        """The product of the chain, its kernel axes put back in order."""
        product, *others = (parts[name] for name in self.part_names)
        groups = product.shape[0]
        for part in others:
            inner = product.shape[-1]
            product = np.matmul(product, part.reshape(groups, inner, -1)).reshape(groups, -1, part.shape[-1])
        order = self.axis_order
        split = product.reshape(groups, self.geometry.channels, *(self.geometry.kernel[axis] for axis in order), -1)
        back = (0, 1, *(2 + order.index(axis) for axis in self.geometry.axes), 2 + len(order))
        return split.transpose(back).reshape(groups, -1, product.shape[-1])

    @property
    @abstractmethod
    def axis_order(self) -> tuple[int, ...]:
        """The kernel axes in the order in which the links cover them."""
