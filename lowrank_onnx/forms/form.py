"""What a form is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lowrank_onnx.types import Array, MatrixShape

MATRIX = "matrix"
"""The family of forms that come from one matrix factorization W ~ left @ right, every smaller rank a prefix of it."""


class Form(ABC):
    """A way to write an approximation of a weight at a rank, in numbers and shapes only.

    A form is frozen data with a value of its own: what its numbers need beside the matrices' shape (kernel dimensions,
    strides) are its fields, filled in by the operator's rule that offers it for a site. Its factors are called parts.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """How users, reports and the operators' rules know it."""

    @property
    @abstractmethod
    def family(self) -> str:
        """The factorization that it is derived from; forms of one family share it, and its error at each rank."""

    @property
    def bundle(self) -> str | None:
        """Names the weights that can only be written together, at one rank; None where the weight is by itself."""
        return None

    @property
    def bundle_size(self) -> int:
        """Number of the weights that are written together."""
        return 1

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts that it has in general; some may be empty, and then left out, in a given shape."""
        return ("left", "right")

    @abstractmethod
    def part_shapes(self, shape: MatrixShape, rank: int) -> dict[str, tuple[int, ...]]:
        """Shape of each part at rank r, the groups first."""

    def parameters(self, shape: MatrixShape, rank: int) -> int:
        """Weights stored at rank r, over all groups."""
        return sum(_product(dims) for dims in self.part_shapes(shape, rank).values())

    def macs(self, shape: MatrixShape, rank: int, positions: int) -> int:
        """Multiply-accumulates at rank r when the matrices are applied at `positions` positions."""
        return positions * self.parameters(shape, rank)

    def dense_macs(self, shape: MatrixShape, positions: int) -> int:
        """Multiply-accumulates of the weight that the form replaces."""
        return positions * shape.parameters

    def largest_rank(self, shape: MatrixShape) -> int:
        """The largest rank that it can be written at."""
        return shape.max_rank

    @abstractmethod
    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest rank at which it stores fewer weights than dense; 0 where there is none."""

    @abstractmethod
    def approximate(self, parts: Mapping[str, Array]) -> Array:
        """The matrices (groups, in, out) that the parts stand for, in the parts' dtype."""

    def factors(self, parts: Mapping[str, Array]) -> tuple[Array, ...]:
        """`approximate` as matrices whose product it is: two, with the rank between them, where the form has these."""
        return (self.approximate(parts),)

    def write_bias(self, part: str, bias: Array, parts: Mapping[str, Array]) -> Array:
        """The bias of one of the new nodes, where the form can't add the stored one (out,) in a single place.

        Parameters
        ----------
        part : which of the new biases.
        bias : the stored bias, in the accumulation dtype.
        parts : the form's parts, as they are stored but in the accumulation dtype.
        """
        raise ValueError(f"form {self.name} adds the bias as it is: it has no '{part}'")


def _product(dims: tuple[int, ...]) -> int:
    total = 1
    for size in dims:
        total *= size
    return total
