"""Which numbers of an activation are the rows x of ``y = x @ W``, operator by operator.

1. MatMul with the weight on the right, Gemm with A as it lies, or B transposed: the last axis holds the features
   (`LastAxis`).
2. MatMul with the weight on the left, Gemm with A transposed, or B as it lies: ``y' = x' @ W``, the rows are columns of
   the activation (`Columns`).
3. Conv: patches, (channels of a group x kernel positions) in that order, one for each output position (`Patches`).
4. ConvTranspose: the channels of a group at each input position: the patches of a 1x1 kernel.

5. Gather: a one-hot row for each index (`Lookup`), of which only the number is kept.

Sites with equal layouts on one activation have the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
from onnx import helper

from lowrank_onnx.types import Site


@dataclass(frozen=True, slots=True)
class LastAxis:
    """Rows along the last axis of an activation (..., in)."""

    in_features: int

    @property
    def groups(self) -> int:
        """One matrix."""
        return 1


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows along the last axis but one of an activation (..., in, columns); a vector (in) is a column."""

    in_features: int

    @property
    def groups(self) -> int:
        """One matrix."""
        return 1


@dataclass(frozen=True, slots=True)
class Patches:
    """Rows that are patches of an activation (samples, groups * channels, *spatial), padded with zeros.

    Attributes
    ----------
    groups, channels : the activation's channels, and how many of them each group has.
    kernel, strides, dilations : one number for each spatial axis.
    pads : as ONNX writes them: the beginnings of all spatial axes, then the ends.
    auto_pad : "NOTSET" (`pads` count), "SAME_UPPER" or "SAME_LOWER" (they follow from the activation's size).
    """

    groups: int
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @property
    def in_features(self) -> int:
        """Numbers in a patch of one group."""
        return self.channels * math.prod(self.kernel)


@dataclass(frozen=True, slots=True)
class Lookup:
    """One-hot rows: the activation has their numbers, of any shape; `in_features` is how many rows the table has."""

    in_features: int

    @property
    def groups(self) -> int:
        """One matrix."""
        return 1


RowLayout: TypeAlias = LastAxis | Columns | Patches | Lookup


def find_row_layout(skeleton: onnx.ModelProto, site: Site) -> RowLayout | str:
    """How the rows of a site lie in its input, or the reason why that can't be told."""
    if site.scope:
        return "it is in a subgraph, whose values onnxruntime doesn't return"
    site = site.own
    node = skeleton.graph.node[site.node_index]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    weight_on_the_right = node.input[0] == site.input
    match site.op_type:
        case "Attention":
            return LastAxis(site.shape.in_features)
        case "FusedMatMul" if attributes.get("transA" if weight_on_the_right else "transB", 0):
            return Columns(site.shape.in_features) if weight_on_the_right else LastAxis(site.shape.in_features)
        case "MatMul" | "FusedMatMul":
            return LastAxis(site.shape.in_features) if weight_on_the_right else Columns(site.shape.in_features)
        case "Gemm" | "FusedGemm":
            transposed = bool(attributes.get("transA" if weight_on_the_right else "transB", 0))
            rows_lie = transposed != weight_on_the_right
            return LastAxis(site.shape.in_features) if rows_lie else Columns(site.shape.in_features)
        case "Conv" | "FusedConv":
            return _conv_patches(site, attributes)
        case "Gather":
            return Lookup(site.shape.in_features)
        case "ConvTranspose":
            return _pointwise(site, len(site.weight.shape) - 2)
    return f"the rows of {site.op_type} inputs aren't known"


def _pointwise(site: Site, spatial: int) -> Patches:
    ones, zeros = (1,) * spatial, (0,) * (2 * spatial)
    return Patches(site.shape.groups, site.shape.in_features, ones, ones, ones, zeros, "NOTSET")


def _conv_patches(site: Site, attributes: Mapping[str, Any]) -> Patches | str:
    kernel = site.weight.shape[2:]
    spatial = len(kernel)
    strides = _numbers(attributes, "strides", (1,) * spatial)
    dilations = _numbers(attributes, "dilations", (1,) * spatial)
    pads = _numbers(attributes, "pads", (0,) * (2 * spatial))
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode("utf-8", "replace")
    for name, values, length in (("strides", strides, spatial), ("dilations", dilations, spatial)):
        if len(values) != length or min(values) < 1:
            return f"{name} is {list(values)}, expected {length} numbers of at least 1"
    if len(pads) != 2 * spatial or min(pads) < 0:
        return f"pads is {list(pads)}, expected {2 * spatial} numbers of at least 0"
    if auto_pad != "NOTSET":
        pads = (0,) * (2 * spatial)
    return Patches(
        groups=site.shape.groups,
        channels=site.shape.in_features // math.prod(kernel),
        kernel=kernel,
        strides=strides,
        # Layouts that give the same rows are to be equal: a kernel of one element has no dilation.
        dilations=tuple(d if size > 1 else 1 for d, size in zip(dilations, kernel, strict=True)),
        pads=pads,
        auto_pad="NOTSET" if auto_pad == "VALID" else auto_pad,
    )


def _numbers(attributes: Mapping[str, Any], name: str, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in attributes.get(name) or default)
