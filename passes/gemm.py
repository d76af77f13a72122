"""Gemm: ``Y = alpha A' B' + beta C``, where A' and B' are A and B, transposed if transA and transB say so.

The last node is a Gemm again: it carries alpha, beta, C and (below opset 7) broadcast exactly as they were, so beta C
is added once and alpha applied once. The first is a MatMul, which has no bias to invent (Gemm needs C below opset 11).
With W = L R of shape (in, out):

1. B is the weight (W = B'), A as it lies:    ``Z = A @ L``,       ``Y = Gemm(Z, R, C)``.
2. B is the weight, A transposed:             ``Z = L' @ A``,      ``Y = Gemm(Z, R, C, transA=1)``; Z' = A' L.
3. A is the weight (W' = A'), B as it lies:   ``Z = L' @ B``,      ``Y = Gemm(R', Z, C)``; R' L' B = A' B.
4. A is the weight, B transposed:             ``Z = B @ L``,       ``Y = Gemm(R', Z, C, transB=1)``; L' B' = Z'.

The shape of C is free in all of them, because Y has the shape that it had. Declined: two activations, two constants, a
weight that isn't 2-D.

The pivoted form is offered where B is the weight, alpha and beta are 1, and C is absent or a stored vector (out,), of
which each of the new nodes gets its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import PAIR, PIVOTED, Form
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
    straight,
    too_small,
    transposed,
    weight_operand,
    weight_slot,
)
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped, WeightRef

_ATTRIBUTES = {
    "alpha": onnx.AttributeProto.FLOAT,
    "beta": onnx.AttributeProto.FLOAT,
    "transA": onnx.AttributeProto.INT,
    "transB": onnx.AttributeProto.INT,
    "broadcast": onnx.AttributeProto.INT,
}
_TRANSPOSE = ("transA", "transB")
_OPTIONAL_BIAS = 11
"""The opset from which Gemm needs no C."""


def match_gemm(candidate: Candidate, extra: Mapping[str, int] = NO_ATTRIBUTES) -> Site | Skipped:
    """A site for a weight as A or as B, or the reason for none; `extra` attributes go to the last node."""
    problem = node_problem(candidate, inputs=(2, 3), attributes={**_ATTRIBUTES, **extra})
    if problem:
        return candidate.skip(problem)
    operand = weight_operand(candidate)
    if isinstance(operand, Skipped):
        return operand
    slot, weight = operand
    shape = weight.ref.shape
    if len(shape) != 2:
        return candidate.skip(f"weight has shape {list(shape)}, expected a matrix", weight)
    # B is (in, out) unless transposed; A is (out, in) unless transposed.
    stored_transposed = _is_transposed(candidate.proto, slot) == (slot == 1)
    in_features, out_features = (shape[1], shape[0]) if stored_transposed else shape
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    order = (0, 2, 1) if stored_transposed else (0, 1, 2)
    forms, bias = _forms(candidate, slot, out_features)
    return candidate.site(
        weight,
        slot=1 - slot,
        to_matrices=Rearrangement((1, *shape), order, (1, in_features, out_features)),
        forms=forms,
        counted=candidate.proto.output[0],
        features=out_features,
        bias=bias,
    )


def _forms(candidate: Candidate, slot: int, out_features: int) -> tuple[tuple[Form, ...], WeightRef | None]:
    """The forms that the node can be written in, and the bias that the pivoted one writes anew."""
    attributes = candidate.node.attrs
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and "broadcast" not in attributes
    if slot == 0 or not plain:
        return (PAIR,), None
    bias = candidate.stored_bias(out_features)
    if bias is None and (candidate.has_bias or candidate.opset < _OPTIONAL_BIAS):
        return (PAIR,), None
    return (PAIR, PIVOTED), bias


def _is_transposed(node: onnx.NodeProto, slot: int) -> bool:
    return any(attribute.name == _TRANSPOSE[slot] and attribute.i != 0 for attribute in node.attribute)


def pair_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """How L and R are stored: L transposed in cases 2 and 3, R in cases 3 and 4."""
    site, rank = choice.site, choice.rank
    shape = site.shape
    slot = weight_slot(node, site)
    left, right = (1, shape.in_features, rank), (1, rank, shape.out_features)
    if _left_comes_first(node, slot):
        left_layout = transposed("left", left, (rank, shape.in_features))
    else:
        left_layout = straight("left", left, left[1:])
    if slot == 0:
        return left_layout, transposed("right", right, (shape.out_features, rank))
    return left_layout, straight("right", right, right[1:])


def _left_comes_first(node: onnx.NodeProto, slot: int) -> bool:
    """True in cases 2 and 3, where the first node is ``L' @ activation``."""
    return _is_transposed(node, 1 - slot) == (slot == 1)


def emit_pair(parts: Parts) -> tuple[Any, ...]:
    """A MatMul, then a Gemm with everything that the original Gemm had."""
    slot = 1 if parts.inputs[0].name == parts.site.input else 0
    activation, bias = parts.inputs[1 - slot], list(parts.inputs[2:])
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    left_comes_first = bool(parts.attributes.get(_TRANSPOSE[1 - slot], 0)) == (slot == 1)
    inputs = [left, activation] if left_comes_first else [activation, left]
    attributes = kept(parts.attributes)
    attributes.pop(_TRANSPOSE[slot], None)
    operands = [mid, right] if slot == 1 else [right, mid]
    return (
        gs.Node("MatMul", "left", inputs=inputs, outputs=[mid]),
        gs.Node("Gemm", attrs=attributes, inputs=[*operands, *bias], outputs=parts.outputs),
    )


def pair_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Between the two factors: the rank, and the dimension of the output that the weight doesn't give."""
    site, rank = choice.site, choice.rank
    node = scope.nodes[site.node_index]
    slot = weight_slot(node, site)
    other = _other_dim(scope, site)
    return {"mid": (rank, other) if _left_comes_first(node, slot) else (other, rank)}


def _other_dim(scope: ScopeView, site: Site) -> int | str | None:
    node = scope.nodes[site.node_index]
    slot = weight_slot(node, site)
    output, activation = scope.dims(site.output), scope.dims(site.input)
    if output is not None and len(output) == 2:
        return output[0 if slot == 1 else 1]
    if activation is not None and len(activation) == 2:
        # The activation's dimension that isn't summed over.
        return activation[1 if _left_comes_first(node, slot) else 0]
    return None


def pivoted_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """All as they lie."""
    del node
    shapes = choice.form.part_shapes(choice.site.shape, choice.rank)
    return tuple(straight(part, dims, dims[1:]) for part, dims in shapes.items())


def _apply(parts: Parts, activation: Any, part: str, output: Any) -> Any:
    """A Gemm, with the part's bias where there is one; the first takes the activation as the original did."""
    transposes = part == "left" and parts.attributes.get("transA", 0)
    inputs = [activation, parts.tensors[part]]
    if BIAS_OF[part] in parts.tensors:
        inputs.append(parts.tensors[BIAS_OF[part]])
    return gs.Node("Gemm", part, attrs={"transA": 1} if transposes else {}, inputs=inputs, outputs=[output])


def _features_dims(scope: ScopeView, site: Site, features: int) -> Dims | None:
    return (_other_dim(scope, site), features)


def _axis(parts: Parts) -> int:
    del parts
    return 1


RULE = Rule(
    "Gemm",
    match_gemm,
    {
        "pair": Writer(pair_layout, pair_values, emit_pair),
        "pivoted": pivoted_writer(pivoted_layout, _features_dims, _apply, _axis),
    },
)
