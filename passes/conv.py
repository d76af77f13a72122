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

The pivoted form is the same with r of the output channels in the middle: a convolution to those, a 1x1 convolution from
them to the others, and a Concat on the channel axis. It is offered for one group (the channels of several would lie
interleaved), with no bias or a stored one, which is written anew for each convolution.

Chains of convolutions over some of the kernel axes each (spatial, input, Tucker-2) are in `conv_chain`.

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

from lowrank_onnx.forms import CONV_CHANNEL, PAIR, PIVOTED, Form
from lowrank_onnx.passes.conv_chain import CHAIN, chain_forms
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.pivoted import BIAS_OF, pivoted_writer
from lowrank_onnx.passes.rule import (
    NO_ATTRIBUTES,
    Candidate,
    Parts,
    Rule,
    TensorLayout,
    Writer,
    kept,
    node_problem,
    too_small,
    transposed,
)
from lowrank_onnx.passes.shared import shared_writer
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, StoredWeight
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped, WeightRef

CONV_ATTRIBUTES = {
    "auto_pad": onnx.AttributeProto.STRING,
    "dilations": onnx.AttributeProto.INTS,
    "group": onnx.AttributeProto.INT,
    "kernel_shape": onnx.AttributeProto.INTS,
    "pads": onnx.AttributeProto.INTS,
    "strides": onnx.AttributeProto.INTS,
}
_AUTO_PAD = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def match_conv(candidate: Candidate, extra: Mapping[str, int] = NO_ATTRIBUTES) -> Site | Skipped:
    """A site for a stored kernel, or the reason for none; `extra` are further attributes that the node may have."""
    weight = convolution_weight(candidate, {**CONV_ATTRIBUTES, **extra})
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
    forms, bias = _forms(candidate, shape, groups)
    return candidate.site(
        weight,
        slot=0,
        to_matrices=Rearrangement((groups, out_features, in_features), (0, 2, 1), (groups, in_features, out_features)),
        forms=forms,
        counted=candidate.proto.output[0],
        features=shape[0],
        bias=bias,
        shares=_what_shared_nodes_agree_in(candidate) if forms[0] == PAIR and groups == 1 else None,
    )


def _what_shared_nodes_agree_in(candidate: Candidate) -> str:
    """The attributes of a 1x1 convolution: all of them decide which positions the first node sees."""
    attributes = kept(candidate.node.attrs)
    return repr(sorted(attributes.items()))


def _forms(candidate: Candidate, shape: tuple[int, ...], groups: int) -> tuple[tuple[Form, ...], WeightRef | None]:
    """The forms that the node can be written in, and the bias that the pivoted one writes anew."""
    plain = PAIR if math.prod(shape[2:]) == 1 else CONV_CHANNEL
    bias = candidate.stored_bias(shape[0])
    chains = chain_forms(candidate, shape, groups)
    if groups > 1 or (bias is None and candidate.has_bias):
        return (plain, *chains), None
    return (plain, PIVOTED, *chains), bias


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


def channel_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """L as a kernel of groups * r outputs, R as a 1x1 kernel of r inputs per group."""
    del node
    shape, stored, rank = choice.site.shape, choice.site.weight.shape, choice.rank
    ones = (1,) * len(stored[2:])
    return (
        transposed("left", (shape.groups, shape.in_features, rank), (shape.groups * rank, *stored[1:])),
        transposed("right", (shape.groups, rank, shape.out_features), (stored[0], rank, *ones)),
    )


def emit_channel(parts: Parts) -> tuple[Any, ...]:
    """A Conv with all the spatial attributes, then a 1x1 Conv with the bias."""
    activation, _, *bias = parts.inputs
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    return (
        gs.Node("Conv", "left", attrs=kept(parts.attributes), inputs=[activation, left], outputs=[mid]),
        gs.Node("Conv", attrs=pointwise_attributes(parts), inputs=[mid, right, *bias], outputs=parts.outputs),
    )


def pointwise_attributes(parts: Parts) -> dict[str, Any]:
    """The attributes of a 1x1 convolution with the site's groups."""
    spatial = len(parts.site.weight.shape) - 2
    return {"group": parts.site.shape.groups, "kernel_shape": [1] * spatial}


def channel_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Between the two convolutions."""
    return {"mid": output_dims(scope, choice.site, choice.site.shape.groups * choice.rank)}


def output_dims(scope: ScopeView, site: Site, channels: int) -> Dims | None:
    """Batch and positions of the output where known, with another number of channels."""
    spatial = len(site.weight.shape) - 2
    output, activation = scope.dims(site.output), scope.dims(site.input)
    if output is not None and len(output) == spatial + 2:
        return (output[0], channels, *output[2:])
    batch = activation[0] if activation is not None and len(activation) == spatial + 2 else None
    return (batch, channels, *(None,) * spatial)


def pivoted_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """The first part as a kernel of r outputs, the others as 1x1 kernels of r inputs."""
    del node
    stored = choice.site.weight.shape
    ones = (1,) * len(stored[2:])
    return tuple(
        transposed(part, dims, (dims[2], *(stored[1:] if part == "left" else (dims[1], *ones))))
        for part, dims in choice.form.part_shapes(choice.site.shape, choice.rank).items()
    )


def _apply(parts: Parts, activation: Any, part: str, output: Any) -> Any:
    """A Conv, with the part's bias where there is one; the first has all the spatial attributes."""
    inputs = [activation, parts.tensors[part]]
    if BIAS_OF[part] in parts.tensors:
        inputs.append(parts.tensors[BIAS_OF[part]])
    attributes = kept(parts.attributes) if part == "left" else pointwise_attributes(parts)
    return gs.Node("Conv", part, attrs=attributes, inputs=inputs, outputs=[output])


def _channel_axis(parts: Parts) -> int:
    del parts
    return 1


_CHANNEL = Writer(channel_layout, channel_values, emit_channel)

RULE = Rule(
    "Conv",
    match_conv,
    {
        "pair": _CHANNEL,
        "conv_channel": _CHANNEL,
        "pivoted": pivoted_writer(pivoted_layout, output_dims, _apply, _channel_axis),
        "shared": shared_writer(channel_layout, channel_values, emit_channel),
        "conv_spatial": CHAIN,
        "conv_input": CHAIN,
        "conv_tucker": CHAIN,
    },
)
