"""MatMul: ``y = x @ W`` becomes ``y = (x @ L) @ R``, and ``y = W @ x`` becomes ``y = R' @ (L' @ x)``.

The matrices of a site are (in, out), so a weight on the left, stored (out, in), is transposed: W' = L R.

Legal cases, numbered as in the guards below:

1. One input is a stored weight and the other an activation. Two activations (attention scores) and two constants are
   declined.
2. The weight is 2-D, or N-D with all leading dimensions 1. True batches of matrices are declined, and so is a vector.
3. Weight on the right: activations of any rank. The leading ones stay on L, where they give ``x @ L`` the dimensions
   that ``x @ W`` had; R is 2-D, because a 1-D activation has lost its row dimension by then:
   (in) @ (1, in, r) is (1, r), and (1, r) @ (1, r, out) would be (1, 1, out), not (1, out).
4. Weight on the left and 2-D: activations of any rank (``L' @ x`` of a vector x is a vector).
5. Weight on the left with leading ones: the activation must be known to have at least 2 dimensions. With a vector
   x, ``L' @ x`` is (1, r), which R' would take for a matrix.

The pivoted form is offered with the weight on the right: its outputs lie on the last axis, where those that are
combinations of the pivots are concatenated with them. Concat counts axes from the end from opset 11 on; below, only
the pair is offered.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import PAIR, PIVOTED
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.pivoted import can_concatenate, last_axis, pivoted_writer
from lowrank_onnx.passes.rule import (
    Candidate,
    Parts,
    Rule,
    TensorLayout,
    Writer,
    node_problem,
    straight,
    too_small,
    transposed,
    weight_operand,
    weight_slot,
)
from lowrank_onnx.passes.shared import shared_writer
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped


def match_matmul(candidate: Candidate) -> Site | Skipped:
    """A site for a weight on either side, or the reason for none."""
    problem = node_problem(candidate, inputs=(2, 2), attributes={})
    if problem:
        return candidate.skip(problem)
    operand = weight_operand(candidate)
    if isinstance(operand, Skipped):
        return operand
    slot, weight = operand
    shape = weight.ref.shape
    problem = _shape_problem(candidate, shape, slot)
    if problem:
        return candidate.skip(problem, weight)
    matrix = shape[-2:]
    in_features, out_features = matrix if slot == 1 else (matrix[1], matrix[0])
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    order = (0, 1, 2) if slot == 1 else (0, 2, 1)
    return candidate.site(
        weight,
        slot=1 - slot,
        to_matrices=Rearrangement((1, *matrix), order, (1, in_features, out_features)),
        forms=(PAIR, PIVOTED) if slot == 1 and can_concatenate(candidate) else (PAIR,),
        counted=candidate.proto.output[0],
        features=out_features,
        shares="" if slot == 1 and len(shape) == 2 else None,
    )


def _shape_problem(candidate: Candidate, shape: tuple[int, ...], slot: int) -> str | None:
    if len(shape) < 2:
        return f"weight has shape {list(shape)}, expected a matrix"
    if any(size != 1 for size in shape[:-2]):
        return f"weight of shape {list(shape)} is a batch of different matrices"
    if slot == 0 and len(shape) > 2:
        activation = candidate.scope.dims(candidate.proto.input[1])
        if activation is None:
            return f"weight of shape {list(shape)} on the left of an activation whose number of dimensions isn't known"
        if len(activation) < 2:
            return f"weight of shape {list(shape)} on the left of a vector"
    return None


def pair_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """How L and R are stored: transposed where the weight stands on the left; leading ones on L alone."""
    site, rank = choice.site, choice.rank
    shape = site.shape
    ones = site.weight.shape[:-2]
    left, right = (1, shape.in_features, rank), (1, rank, shape.out_features)
    if weight_slot(node, site) == 1:
        return straight("left", left, (*ones, *left[1:])), straight("right", right, right[1:])
    return (
        transposed("left", left, (*ones, rank, shape.in_features)),
        transposed("right", right, (shape.out_features, rank)),
    )


def emit_pair(parts: Parts) -> tuple[Any, ...]:
    """Two MatMuls."""
    first, second = parts.inputs
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    if first.name == parts.site.input:
        return (
            gs.Node("MatMul", "left", inputs=[first, left], outputs=[mid]),
            gs.Node("MatMul", inputs=[mid, right], outputs=parts.outputs),
        )
    return (
        gs.Node("MatMul", "left", inputs=[left, second], outputs=[mid]),
        gs.Node("MatMul", inputs=[right, mid], outputs=parts.outputs),
    )


def pair_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Between the two factors."""
    return {"mid": features_dims(scope, choice.site, choice.rank)}


def features_dims(scope: ScopeView, site: Site, features: int) -> Dims | None:
    """The output's shape (else, for a 2-D weight, the activation's) with another feature dimension."""
    dims = scope.dims(site.output)
    if dims is None and len(site.weight.shape) == 2:
        dims = scope.dims(site.input)
    if not dims:
        return None
    on_the_right = weight_slot(scope.nodes[site.node_index], site) == 1
    return (*dims[:-1], features) if on_the_right or len(dims) == 1 else (*dims[:-2], features, dims[-1])


def pivoted_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """All as they lie; leading ones on the first factor alone."""
    del node
    ones = choice.site.weight.shape[:-2]
    return tuple(
        straight(part, dims, (*(ones if part == "left" else ()), *dims[1:]))
        for part, dims in choice.form.part_shapes(choice.site.shape, choice.rank).items()
    )


def _apply(parts: Parts, activation: Any, part: str, output: Any) -> Any:
    return gs.Node("MatMul", part, inputs=[activation, parts.tensors[part]], outputs=[output])


RULE = Rule(
    "MatMul",
    match_matmul,
    {
        "pair": Writer(pair_layout, pair_values, emit_pair),
        "pivoted": pivoted_writer(pivoted_layout, features_dims, _apply, last_axis),
        "shared": shared_writer(pair_layout, pair_values, emit_pair),
    },
)
