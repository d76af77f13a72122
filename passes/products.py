"""Linear nodes that meet with nothing in between: one node can apply the product of their weights.

``(x @ W1 + b1) @ W2 + b2 = x @ (W1 @ W2) + (b1 @ W2 + b2)``: the same up to rounding, and smaller where the dimension
in the middle is large. It is so in models as they are exported, and where the second factor of a weight meets the next
weight or the first factor of that.

Legal cases, numbered as in the guards below:

1. MatMul or Gemm, then MatMul or Gemm; Conv, then Conv. What is in the middle is read by the second node alone, in the
   main graph. After a MatMul an Add may stand in between that adds a stored vector: a bias.
2. Both weights are stored as the nodes read them, for this one use; biases are stored vectors.
3. MatMul and Gemm: the weight is a matrix on the right, a Gemm's alpha and beta are 1, and the second doesn't transpose
   what is in the middle.
4. Conv: both have one group, and the second is 1x1 with stride 1 and no padding. A wider second kernel would see the
   padding that it adds, which isn't what the first makes of padding.
5. The product has fewer weights than the two together. Both are applied at the same positions, so that it also takes
   fewer multiply-accumulates.
6. Two factors of one weight stay apart: their rank was chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx

from lowrank_onnx.passes.dataflow import Dataflow, read_dataflow
from lowrank_onnx.passes.graph_view import ModelView, view_model
from lowrank_onnx.passes.rule import Candidate
from lowrank_onnx.passes.rules import RULE_OF
from lowrank_onnx.passes.weight_source import StoredWeight, WeightSources, is_default
from lowrank_onnx.types import MatrixShape, Site, Skipped, WeightRef

SITE_ENTRY = "lowrank.site"
"""The metadata by which a node says which site it was written for."""

_MATRIX = ("MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Product:
    """Two sites that one node can stand for.

    Attributes
    ----------
    first, second : the sites, as they are.
    addition : the position of the Add in between; None where there is none.
    first_bias, second_bias : what is added to each product of a weight, where something is.
    """

    first: Site
    second: Site
    addition: int | None
    first_bias: WeightRef | None
    second_bias: WeightRef | None

    @property
    def shape(self) -> MatrixShape:
        """Of the product."""
        return MatrixShape(1, self.first.shape.in_features, self.second.shape.out_features)

    @property
    def parameters(self) -> int:
        """Weights of the two, without biases."""
        return self.first.shape.parameters + self.second.shape.parameters

    @property
    def saved(self) -> int:
        """How many weights fewer the product has."""
        return self.parameters - self.shape.parameters


@dataclass(frozen=True, slots=True)
class Apart:
    """Two linear nodes that meet, by the names of their sites, and why they stay apart."""

    first: str
    second: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Positions of two linear nodes, and of the Add between them."""

    first: int
    addition: int | None
    second: int


def find_products(skeleton: onnx.ModelProto, outputs: Collection[str]) -> tuple[tuple[Product, ...], tuple[Apart, ...]]:
    """Pairs of nodes of the main graph that one node can stand for, and pairs that meet but stay apart.

    Parameters
    ----------
    skeleton : the model; weight bytes are never read.
    outputs : the first outputs of the nodes that may be touched.

    Returns
    -------
    Both in graph order. A node may be in two products: the second of one, the first of another.
    """
    flow = read_dataflow(skeleton)
    meetings = [meeting for meeting in _meetings(flow) if _may_touch(flow, meeting, outputs)]
    if not meetings:
        return (), ()
    view = view_model(skeleton)
    sources = WeightSources(view)
    found = [_examine(flow, view, sources, meeting) for meeting in meetings]
    return (
        tuple(item for item in found if isinstance(item, Product)),
        tuple(item for item in found if isinstance(item, Apart)),
    )


def linear_outputs(skeleton: onnx.ModelProto, sites: Sequence[Site]) -> frozenset[str]:
    """The first outputs of the main graph's nodes that the sites are, or that were written for one of them."""
    outputs = {site.output for site in sites}
    names = {site.name for site in sites}
    outputs.update(name for node in skeleton.graph.node if _written_for(node) in names for name in node.output[:1])
    return frozenset(outputs)


def _meetings(flow: Dataflow) -> Iterator[_Meeting]:
    """Linear nodes of one kind with nothing between them but a bias (case 1)."""
    for index, node in enumerate(flow.skeleton.graph.node):
        if not _is_linear(node, (*_MATRIX, "Conv")):
            continue
        before, addition = flow.producers.get(node.input[0]), None
        if before is not None and is_default(flow.node(before), "Add"):
            addition, before = before, _added_to(flow, before)
        if before is None or flow.is_constant(before):
            continue
        kinds = ("MatMul",) if addition is not None else _MATRIX if node.op_type in _MATRIX else ("Conv",)
        if _is_linear(flow.node(before), kinds) and (addition is None or node.op_type in _MATRIX):
            yield _Meeting(before, addition, index)


def _is_linear(node: onnx.NodeProto, op_types: Collection[str]) -> bool:
    named = len(node.input) > 1 and len(node.output) == 1
    return node.op_type in op_types and is_default(node, node.op_type) and named


def _added_to(flow: Dataflow, addition: int) -> int | None:
    """Which node makes what a constant is added to."""
    varying = [name for name in flow.node(addition).input if name not in flow.constants]
    return flow.producers.get(varying[0]) if len(varying) == 1 else None


def _may_touch(flow: Dataflow, meeting: _Meeting, outputs: Collection[str]) -> bool:
    first, second = flow.node(meeting.first), flow.node(meeting.second)
    written_for = _written_for(first)
    same = written_for != "" and written_for == _written_for(second)  # case 6
    return first.output[0] in outputs and second.output[0] in outputs and not same


def _written_for(node: onnx.NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == SITE_ENTRY), "")


def _examine(flow: Dataflow, view: ModelView, sources: WeightSources, meeting: _Meeting) -> Product | Apart:
    scope = view.scopes[()]
    first, second = (
        Candidate(view, scope, index, scope.label(index), sources) for index in (meeting.first, meeting.second)
    )
    sites = [RULE_OF[one.proto.op_type].match(one) for one in (first, second)]
    skipped = next((site for site in sites if isinstance(site, Skipped)), None)
    if skipped is not None:
        return Apart(first.name, second.name, f"'{skipped.name}': {skipped.reason}")
    before, after = (site for site in sites if isinstance(site, Site))
    reason = (
        _middle_problem(flow, meeting)
        or next((found for one, site in ((first, before), (second, after)) if (found := _problem(one, site))), None)
        or _second_problem(second, after)
    )
    given, taken = before.shape.out_features, after.shape.in_features
    if reason is None and given != taken:
        reason = f"'{first.name}' gives {given} features, '{second.name}' takes {taken}"
    if reason is not None:
        return Apart(first.name, second.name, reason)
    added = _bias(first, before) if meeting.addition is None else _added(flow, view, sources, meeting, before)
    own = _bias(second, after)
    if isinstance(added, str) or isinstance(own, str):
        return Apart(first.name, second.name, added if isinstance(added, str) else str(own))
    product = Product(before, after, meeting.addition, added, own)
    if product.saved <= 0:  # case 5
        sizes = f"{product.shape.parameters} weights, the two together {product.parameters}"
        return Apart(first.name, second.name, f"their product wouldn't be smaller: it has {sizes}")
    return product


def _middle_problem(flow: Dataflow, meeting: _Meeting) -> str | None:
    """Case 1: each value on the way is read once."""
    on_the_way = [index for index in (meeting.first, meeting.addition) if index is not None]
    for value in (flow.node(index).output[0] for index in on_the_way):
        if value in flow.outputs:
            return f"'{value}' between them is an output of the graph"
        if len(flow.readers[value]) > 1:
            return f"'{value}' between them is read by other nodes too"
    return None


def _problem(candidate: Candidate, site: Site) -> str | None:
    """Cases 2 to 4, as far as they are about each of the two."""
    node, weight = candidate.proto, site.weight
    if weight.encoding is not None or weight.name != node.input[1] or site.input != node.input[0]:
        return f"the weight of '{candidate.name}' isn't a tensor on the right that is stored as it is read"
    if len(candidate.view.uses[weight.scope, weight.name]) > 1 or weight.scope != ():
        return f"the weight of '{candidate.name}' has other uses"
    if node.op_type in _MATRIX and len(weight.shape) != 2:
        return f"the weight of '{candidate.name}' has shape {list(weight.shape)}, expected a matrix"
    attributes = candidate.node.attrs
    if node.op_type == "Gemm":
        scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        return f"'{candidate.name}' scales or broadcasts" if scaled or "broadcast" in attributes else None
    if node.op_type == "Conv" and site.shape.groups > 1:
        return f"'{candidate.name}' has {site.shape.groups} groups"
    return None


def _second_problem(candidate: Candidate, site: Site) -> str | None:
    """Cases 3 and 4: what the second node may not do to what is in the middle."""
    attributes = candidate.node.attrs
    if candidate.proto.op_type == "Gemm":
        return f"'{candidate.name}' transposes what is between them" if attributes.get("transA", 0) else None
    if candidate.proto.op_type == "Conv":
        strides, pads = attributes.get("strides", ()), attributes.get("pads", ())
        if any(size != 1 for size in site.weight.shape[2:]):
            return f"the kernel of '{candidate.name}' has more than one element"
        if any(step != 1 for step in strides) or any(pads):
            return f"'{candidate.name}' has strides or pads"
    return None


def _bias(candidate: Candidate, site: Site) -> WeightRef | str | None:
    """The node's own bias; None where it has none, the problem where it can't be computed with."""
    if not candidate.has_bias:
        return None
    bias = candidate.source(2)
    vector = (site.shape.out_features,)
    if not isinstance(bias, StoredWeight) or bias.ref.encoding is not None or bias.ref.shape != vector:
        return f"the bias of '{candidate.name}' isn't a stored vector of {vector[0]}"
    return bias.ref


def _added(flow: Dataflow, view: ModelView, sources: WeightSources, meeting: _Meeting, site: Site) -> WeightRef | str:
    """What the Add in between adds."""
    assert meeting.addition is not None
    node = flow.node(meeting.addition)
    (name,) = (name for name in node.input if name in flow.constants)
    bias = sources.find(view.scopes[()], name)
    vector = (site.shape.out_features,)
    if not isinstance(bias, StoredWeight) or bias.ref.encoding is not None or bias.ref.shape != vector:
        return f"'{name}', which is added between them, isn't a stored vector of {vector[0]}"
    return bias.ref
