"""A convolution as a chain of convolutions over some of its kernel axes each: spatial, input and Tucker-2 forms.

What a patch goes through axis by axis can be done axis by axis: a link carries the kernel, stride, dilation and padding
of the axes that it covers, and is 1x1 with stride 1 and no padding on all others.

1. Zeros that pad the input along one axis stay zeros under the links before that axis' turn: those have no bias.
2. auto_pad is resolved for each axis on its own, from its size, kernel, stride and dilation. A link's own axes have the
   original's, and on the others SAME and VALID both add nothing; so each link keeps the attribute.
3. The bias belongs to the last link.
4. Every link keeps `group`: each group has its own chain.

Not offered: attributes whose lists don't have the length that the kernel asks for, and negative pads, which would cut
away what another link still needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import Form
from lowrank_onnx.forms.conv_chain import ConvChain, ConvGeometry, Link
from lowrank_onnx.forms.conv_spatial import spatial_form
from lowrank_onnx.forms.conv_tucker import ConvInput, ConvTucker
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import Candidate, Parts, TensorLayout, Writer, transposed
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import MatrixShape, SiteChoice


def chain_forms(candidate: Candidate, stored: tuple[int, ...], groups: int) -> tuple[Form, ...]:
    """The chains in which a convolution with this stored kernel can be written; none for a kernel of one element."""
    kernel, attributes = stored[2:], candidate.node.attrs
    if math.prod(kernel) == 1 or chain_problem(attributes, len(kernel)) is not None:
        return ()
    geometry = ConvGeometry(stored[1], kernel, _sizes(candidate, attributes, kernel))
    shape = MatrixShape(groups, math.prod(stored[1:]), stored[0] // groups)
    forms = (spatial_form(geometry, shape), ConvInput(geometry), ConvTucker(geometry))
    return tuple(form for form in forms if form is not None and form.largest_useful_rank(shape) > 0)


def chain_problem(attributes: Mapping[str, Any], spatial: int) -> str | None:
    """Why the attributes can't be divided among the links, or None."""
    for name, length in (("strides", spatial), ("dilations", spatial), ("pads", 2 * spatial)):
        values = attributes.get(name) or []
        if values and len(values) != length:
            return f"{name} is {list(values)}, expected {length} numbers"
    if min(attributes.get("pads") or [0]) < 0:
        return f"pads is {list(attributes['pads'])}, expected none below 0"
    return None


def _sizes(candidate: Candidate, attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The sizes of input and output along each axis, where the model states both; else the stride and 1."""
    strides = attributes.get("strides") or [1] * len(kernel)
    unknown = (None,) * (len(kernel) + 2)
    read, made = (
        candidate.scope.dims(name) or unknown for name in (candidate.proto.input[0], candidate.proto.output[0])
    )
    if not len(read) == len(made) == len(unknown):
        read = made = unknown
    return tuple(
        (before, after) if _is_size(before) and _is_size(after) else (max(1, int(stride)), 1)
        for before, after, stride in zip(read[2:], made[2:], strides, strict=True)
    )


def _is_size(dim: object) -> TypeGuard[int]:
    return isinstance(dim, int) and dim > 0


def _form(choice: SiteChoice) -> ConvChain:
    assert isinstance(choice.form, ConvChain)
    return choice.form


def _links(choice: SiteChoice) -> tuple[Link, ...]:
    return _form(choice).links(choice.site.shape, choice.rank)


def _layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """Each part as a kernel over the axes that its link covers."""
    del node
    geometry, groups = _form(choice).geometry, choice.site.shape.groups
    return tuple(
        transposed(
            link.part,
            (groups, link.inputs * geometry.taps(link.axes), link.outputs),
            (groups * link.outputs, link.inputs, *_restricted(geometry.kernel, link.axes, 1)),
        )
        for link in _links(choice)
    )


def _restricted(values: tuple[int, ...], axes: tuple[int, ...], neutral: int) -> tuple[int, ...]:
    """The values of some axes, and the neutral one for the others."""
    return tuple(value if axis in axes else neutral for axis, value in enumerate(values))


def _values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Behind each link but the last: the output's size along the axes covered so far, the input's along the others."""
    site = choice.site
    rank = len(site.weight.shape)
    read, made = scope.dims(site.input), scope.dims(site.output)
    read = read if read is not None and len(read) == rank else (None,) * rank
    made = made if made is not None and len(made) == rank else (None,) * rank
    covered: set[int] = set()
    values: dict[str, Dims | None] = {}
    for name, link in zip(_MIDS, _links(choice)[:-1], strict=False):
        covered.update(link.axes)
        sizes = (made[2 + axis] if axis in covered else read[2 + axis] for axis in range(rank - 2))
        batch = read[0] if made[0] is None else made[0]
        values[name] = (batch, site.shape.groups * link.outputs, *sizes)
    return values


_MIDS = ("mid", "core")
"""What the activations between the links are called, in order."""


def _emit(parts: Parts) -> tuple[Any, ...]:
    """One Conv for each link; the last has the bias."""
    activation, _, *bias = parts.inputs
    links = _links(parts.choice)
    nodes = []
    for index, link in enumerate(links):
        last = index == len(links) - 1
        output = parts.outputs[0] if last else parts.values[_MIDS[index]]
        inputs = [activation, parts.tensors[link.part], *(bias if last else [])]
        attributes = _attributes(parts, link)
        nodes.append(gs.Node("Conv", "" if last else link.part, attrs=attributes, inputs=inputs, outputs=[output]))
        activation = output
    return tuple(nodes)


def _attributes(parts: Parts, link: Link) -> dict[str, Any]:
    """The original's attributes, with those of the axes that the link doesn't cover made neutral."""
    kernel, given = _form(parts.choice).geometry.kernel, parts.attributes
    attributes: dict[str, Any] = {"kernel_shape": list(_restricted(kernel, link.axes, 1))}
    for name, neutral in (("strides", 1), ("dilations", 1)):
        if given.get(name):
            attributes[name] = list(_restricted(tuple(given[name]), link.axes, neutral))
    if given.get("pads"):
        both = (*link.axes, *(len(kernel) + axis for axis in link.axes))
        attributes["pads"] = list(_restricted(tuple(given["pads"]), both, 0))
    return attributes | {name: given[name] for name in ("auto_pad", "group") if name in given}


CHAIN = Writer(_layout, _values, _emit)
"""Writes any form that is a chain of convolutions."""
