"""Conv: a k-wide convolution to r channels per group, then a 1x1 convolution to the original channels.

A convolution multiplies each patch, (in) = channels of a group x kernel positions, by one (in, out) matrix per group.
With W = L R per group, the patches meet L in a convolution with the original's kernel, strides, dilations, padding and
groups, and its r channels per group meet R in a 1x1 convolution with the same groups.

1. Stride, dilation, pads (symmetric or not) and auto_pad belong to the first node, unchanged. The second sees every
   position once. Zeros that pad the input stay zeros under L, so the padding needs nothing else.
2. The bias belongs to the second node: it is added once, at every position.
3. Groups: each group has its own matrices; both nodes keep `group`.
4. 1-D, 2-D, 3-D and more: the kernel's dimensions are only reshaped.
5. A kernel of one element is a matrix product (form "pair"), any other is form "conv_channel".

Declined: a weight that isn't stored, a weight of fewer than 3 dimensions, groups that don't divide the output channels,
a kernel_shape that contradicts the weight, depthwise convolutions (one input channel per group), and matrices with one
row or column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import (
    Candidate,
    FactorLayout,
    Parts,
    Rule,
    kept,
    node_problem,
    too_small,
    transposed,
)
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, StoredWeight
from lowrank_onnx.types import Rearrangement, Site, Skipped

CONV_ATTRIBUTES = {
    "auto_pad": onnx.AttributeProto.STRING,
    "dilations": onnx.AttributeProto.INTS,
    "group": onnx.AttributeProto.INT,
    "kernel_shape": onnx.AttributeProto.INTS,
    "pads": onnx.AttributeProto.INTS,
    "strides": onnx.AttributeProto.INTS,
}
_AUTO_PAD = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def match_conv(candidate: Candidate) -> Site | Skipped:
    """A site for a stored kernel, or the reason for none."""
    weight = convolution_weight(candidate, CONV_ATTRIBUTES)
    if isinstance(weight, Skipped):
        return weight
    shape = weight.ref.shape
    groups = group_count(candidate.node.attrs)
    if shape[0] % groups:
        return candidate.skip(f"group is {groups}, which doesn't divide the {shape[0]} output channels", weight)
    if groups > 1 and shape[1] == 1:
        return candidate.skip(f"depthwise: {groups} groups of one input channel", weight)
    in_features, out_features = math.prod(shape[1:]), shape[0] // groups
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    return candidate.site(
        weight,
        slot=0,
        to_matrices=Rearrangement((groups, out_features, in_features), (0, 2, 1), (groups, in_features, out_features)),
        form="pair" if math.prod(shape[2:]) == 1 else "conv_channel",
        counted=candidate.proto.output[0],
        features=shape[0],
    )


def convolution_weight(candidate: Candidate, attributes: Mapping[str, int]) -> StoredWeight | Skipped:
    """The guards that Conv and ConvTranspose share: a well-formed node with a stored kernel and sound attributes."""
    problem = node_problem(candidate, inputs=(2, 3), attributes=attributes)
    if problem:
        return candidate.skip(problem)
    weight = candidate.source(1)
    if not isinstance(weight, StoredWeight):
        return candidate.skip(weight.reason, weight)
    if not isinstance(candidate.source(0), Activation):
        return candidate.skip("both inputs are constant: fold constants first", weight)
    shape, attrs = weight.ref.shape, candidate.node.attrs
    if len(shape) < 3:
        return candidate.skip(f"weight has shape {list(shape)}, expected at least 3 dimensions", weight)
    if group_count(attrs) < 1:
        return candidate.skip(f"group is {group_count(attrs)}, expected at least 1", weight)
    kernel_shape = attrs.get("kernel_shape") or list(shape[2:])
    if tuple(kernel_shape) != shape[2:]:
        return candidate.skip(f"kernel_shape {kernel_shape} contradicts the weight's shape {list(shape)}", weight)
    auto_pad = attrs.get("auto_pad", "NOTSET")
    if auto_pad not in _AUTO_PAD:
        return candidate.skip(f"auto_pad is '{auto_pad}', expected one of {', '.join(_AUTO_PAD)}", weight)
    return weight


def group_count(attributes: Mapping[str, Any]) -> int:
    """The number of groups, 1 where the node doesn't say."""
    return int(attributes.get("group", 1))


def conv_layout(node: onnx.NodeProto, site: Site, rank: int) -> tuple[FactorLayout, FactorLayout]:
    """L as a kernel of groups * r outputs, R as a 1x1 kernel of r inputs per group."""
    shape, stored = site.shape, site.weight.shape
    ones = (1,) * len(stored[2:])
    left = transposed((shape.groups, shape.in_features, rank), (shape.groups * rank, *stored[1:]))
    right = transposed((shape.groups, rank, shape.out_features), (stored[0], rank, *ones))
    return left, right


def emit_conv(parts: Parts) -> tuple[Any, Any]:
    """A Conv with all the spatial attributes, then a 1x1 Conv with the bias."""
    activation, _, *bias = parts.inputs
    return (
        gs.Node("Conv", attrs=kept(parts.attributes), inputs=[activation, parts.left], outputs=[parts.mid]),
        gs.Node(
            "Conv", attrs=pointwise_attributes(parts), inputs=[parts.mid, parts.right, *bias], outputs=parts.outputs
        ),
    )


def pointwise_attributes(parts: Parts) -> dict[str, Any]:
    """The attributes of a 1x1 convolution with the site's groups."""
    spatial = len(parts.site.weight.shape) - 2
    return {"group": parts.site.shape.groups, "kernel_shape": [1] * spatial}


def conv_mid_dims(scope: ScopeView, site: Site, rank: int) -> Dims | None:
    """Batch and positions of the output where known, groups * r channels."""
    channels, spatial = site.shape.groups * rank, len(site.weight.shape) - 2
    output, activation = scope.dims(site.output), scope.dims(site.input)
    if output is not None and len(output) == spatial + 2:
        return (output[0], channels, *output[2:])
    batch = activation[0] if activation is not None and len(activation) == spatial + 2 else None
    return (batch, channels, *(None,) * spatial)


RULE = Rule("Conv", match_conv, conv_layout, emit_conv, conv_mid_dims)
