"""Gather of whole rows of a stored table, ``Y = W[ids]``, becomes ``Y = L[ids] @ R``: an embedding.

W is (rows, out), and one row is what a one-hot vector times W would give, so the site's matrices are those of the
table. The indices are left as they are, negative ones included: L has as many rows as W.

1. The table is a stored matrix; tables of integers and vectors serve shape arithmetic, and are passed over silently, as
   are lookups in activations.
2. Rows are looked up: axis 0, which is also the default, or -2.
3. The indices are known at run time only: those of a constant give a constant.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import EMBEDDING
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import Candidate, Parts, Rule, TensorLayout, Writer, node_problem, straight, too_small
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, StoredWeight
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped

_ATTRIBUTES = {"axis": onnx.AttributeProto.INT}


def match_gather(candidate: Candidate) -> Site | Skipped | None:
    """A site for a table of floating-point rows, the reason for none, or None where there is no such table."""
    table = candidate.source(0) if candidate.proto.input and candidate.proto.input[0] else None
    if not isinstance(table, StoredWeight) or len(table.ref.shape) < 2:
        return None
    problem = node_problem(candidate, inputs=(2, 2), attributes=_ATTRIBUTES) or _lookup_problem(candidate, table)
    if problem:
        return candidate.skip(problem, table)
    rows, out = table.ref.shape
    return candidate.site(
        table,
        slot=1,
        to_matrices=Rearrangement((1, rows, out), (0, 1, 2), (1, rows, out)),
        forms=(EMBEDDING,),
        counted=candidate.proto.output[0],
        features=out,
    )


def _lookup_problem(candidate: Candidate, table: StoredWeight) -> str | None:
    shape = table.ref.shape
    axis = next((attribute.i for attribute in candidate.proto.attribute), 0)
    if len(shape) != 2:
        return f"table of shape {list(shape)}, expected a matrix"
    if axis not in (0, -2):
        return f"it looks up along axis {axis} of its table, expected rows (axis 0)"
    if not isinstance(candidate.source(1), Activation):
        return "its indices are constant: fold constants first"
    return too_small(*shape)


def _layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """Both as they lie."""
    del node
    shapes = choice.form.part_shapes(choice.site.shape, choice.rank)
    return tuple(straight(part, dims, dims[1:]) for part, dims in shapes.items())


def _values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Rows of L, in the shape of the indices."""
    places, made = scope.dims(choice.site.input), scope.dims(choice.site.output)
    if places is None and made:
        places = made[:-1]
    return {"mid": None if places is None else (*places, choice.rank)}


def _emit(parts: Parts) -> tuple[Any, ...]:
    """The same lookup in L, then a MatMul."""
    mid = parts.values["mid"]
    looked_up = [parts.tensors["left"], parts.inputs[1]]
    return (
        gs.Node("Gather", "left", attrs=dict(parts.attributes), inputs=looked_up, outputs=[mid]),
        gs.Node("MatMul", inputs=[mid, parts.tensors["right"]], outputs=parts.outputs),
    )


RULE = Rule("Gather", match_gather, {"embedding": Writer(_layout, _values, _emit)})
