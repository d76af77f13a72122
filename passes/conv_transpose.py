"""ConvTranspose: a 1x1 convolution to r channels per group, then the transposed convolution from r channels.

A transposed convolution multiplies the channels of a group at each input position by one (in, out * kernel) matrix and
scatters the result. With W = L R per group, L is applied position by position before, and R is scattered as W was.

1. All attributes (strides, dilations, pads, auto_pad, output_padding, output_shape, group) belong to the second node:
   the first changes no positions, so output sizes come out as before.
2. The bias belongs to the second node.
3. Groups: each group has its own matrices; both nodes keep `group`.

Declined: as for Conv; here the groups must divide the input channels.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import CONV_TRANSPOSE_CHANNEL
from lowrank_onnx.passes.conv import CONV_ATTRIBUTES, convolution_weight, group_count, pointwise_attributes
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import Candidate, Parts, Rule, TensorLayout, Writer, kept, straight, too_small, transposed
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped

_ATTRIBUTES = {
    **CONV_ATTRIBUTES,
    "output_padding": onnx.AttributeProto.INTS,
    "output_shape": onnx.AttributeProto.INTS,
}


def match_conv_transpose(candidate: Candidate) -> Site | Skipped:
    """A site for a stored kernel, or the reason for none."""
    weight = convolution_weight(candidate, _ATTRIBUTES)
    if isinstance(weight, Skipped):
        return weight
    shape = weight.ref.shape
    groups = group_count(candidate.node.attrs)
    if shape[0] % groups:
        return candidate.skip(f"group is {groups}, which doesn't divide the {shape[0]} input channels", weight)
    if groups > 1 and shape[0] == groups:
        return candidate.skip(f"depthwise: {groups} groups of one input channel", weight)
    in_features, out_features = shape[0] // groups, math.prod(shape[1:])
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    matrices = (groups, in_features, out_features)
    return candidate.site(
        weight,
        slot=0,
        to_matrices=Rearrangement(matrices, (0, 1, 2), matrices),
        forms=(CONV_TRANSPOSE_CHANNEL,),
        counted=candidate.proto.input[0],
        features=shape[0],
    )


def channel_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """L as a 1x1 Conv kernel of groups * r outputs, R as a ConvTranspose kernel of groups * r inputs."""
    del node
    shape, stored, rank = choice.site.shape, choice.site.weight.shape, choice.rank
    ones = (1,) * len(stored[2:])
    return (
        transposed("left", (shape.groups, shape.in_features, rank), (shape.groups * rank, shape.in_features, *ones)),
        straight("right", (shape.groups, rank, shape.out_features), (shape.groups * rank, *stored[1:])),
    )


def emit_channel(parts: Parts) -> tuple[Any, ...]:
    """A 1x1 Conv, then a ConvTranspose with all attributes and the bias."""
    activation, _, *bias = parts.inputs
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    return (
        gs.Node("Conv", "left", attrs=pointwise_attributes(parts), inputs=[activation, left], outputs=[mid]),
        gs.Node("ConvTranspose", attrs=kept(parts.attributes), inputs=[mid, right, *bias], outputs=parts.outputs),
    )


def channel_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Between the two: batch and positions of the input where known, groups * r channels."""
    site = choice.site
    channels, spatial = site.shape.groups * choice.rank, len(site.weight.shape) - 2
    activation = scope.dims(site.input)
    if activation is not None and len(activation) == spatial + 2:
        return {"mid": (activation[0], channels, *activation[2:])}
    return {"mid": (None, channels, *(None,) * spatial)}


RULE = Rule(
    "ConvTranspose",
    match_conv_transpose,
    {"conv_transpose_channel": Writer(channel_layout, channel_values, emit_channel)},
)
