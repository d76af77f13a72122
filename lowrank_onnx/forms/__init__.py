"""How a rank-r approximation is written, in numbers only: one module a form.

A form knows its parameters, its multiply-accumulates and its largest useful rank. The operator's rule in
`lowrank_onnx.passes` knows the nodes that write it; neither knows how ranks are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from lowrank_onnx.forms import pair
from lowrank_onnx.types import MatrixShape


class Form(Protocol):
    """What every form's module provides."""

    def parameters(self, shape: MatrixShape, rank: int) -> int:
        """Weights stored at rank r, over all groups."""
        ...

    def macs(self, shape: MatrixShape, rank: int, positions: int) -> int:
        """Multiply-accumulates at rank r when the matrices are applied at `positions` positions."""
        ...

    def largest_useful_rank(self, shape: MatrixShape) -> int:
        """The largest rank at which the form stores fewer weights than dense; 0 where there is none."""
        ...


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "pair": pair,
        # A convolution applied to patches is the pair of its unfolded weight: its first convolution has the kernel and
        # r channels, its second is 1x1. A transposed convolution is the mirror image. Positions, parameters and MACs
        # are the pair's in both.
        "conv_channel": pair,
        "conv_transpose_channel": pair,
    }
)
"""Every form by the name that sites carry."""

__all__ = ["FORMS", "Form"]
