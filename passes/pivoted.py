"""The pivoted form's nodes, the same for every operator: ``z``, ``z @ D1`` and ``z @ D2`` by its own, then a Concat.

An operator gives how it stores the parts, how it applies one of them (with the new bias of the same place, where there
is one), and the axis of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import Candidate, Parts, TensorLayout, Writer, bias_layout
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Site, SiteChoice

_NEGATIVE_AXES = 11
"""The opset from which Concat counts axes from the end too."""

BIAS_OF = {"left": "bias", "before": "bias_before", "after": "bias_after"}
"""The new bias beside each part."""

Apply: TypeAlias = Callable[[Parts, Any, str, Any], Any]
"""The node that multiplies an activation by a part, into an output."""


def pivoted_writer(
    layout: Callable[[onnx.NodeProto, SiteChoice], tuple[TensorLayout, ...]],
    dims_with: Callable[[ScopeView, Site, int], Dims | None],
    apply: Apply,
    axis: Callable[[Parts], int],
) -> Writer:
    """A writer of the pivoted form.

    Parameters
    ----------
    layout : how the operator stores the parts.
    dims_with : the shape of its output with that many features.
    apply : its node for one part.
    axis : on which its outputs lie.
    """

    def with_biases(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
        layouts, bias = layout(node, choice), choice.site.bias
        if bias is None:
            return layouts
        sizes = {part: dims[-1] for part, dims in choice.form.part_shapes(choice.site.shape, choice.rank).items()}
        return (*layouts, *(bias_layout(BIAS_OF[part], size, bias) for part, size in sizes.items()))

    def values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
        sizes = choice.form.part_shapes(choice.site.shape, choice.rank)
        names = {"left": "mid", "before": "before", "after": "after"}
        return {names[part]: dims_with(scope, choice.site, dims[-1]) for part, dims in sizes.items()}

    def emit(parts: Parts) -> tuple[Any, ...]:
        pivots = parts.values["mid"]
        nodes = [apply(parts, parts.inputs[0], "left", pivots)]
        joined = [pivots]
        if "before" in parts.values:
            nodes.append(apply(parts, pivots, "before", parts.values["before"]))
            joined.insert(0, parts.values["before"])
        if "after" in parts.values:
            nodes.append(apply(parts, pivots, "after", parts.values["after"]))
            joined.append(parts.values["after"])
        return (*nodes, gs.Node("Concat", attrs={"axis": axis(parts)}, inputs=joined, outputs=parts.outputs))

    return Writer(with_biases, values, emit)


def can_concatenate(candidate: Candidate) -> bool:
    """Whether the last axis of the node's output can be named in this opset."""
    return candidate.opset >= _NEGATIVE_AXES


def last_axis(parts: Parts) -> int:
    """The last axis, whatever the number of dimensions."""
    del parts
    return -1
