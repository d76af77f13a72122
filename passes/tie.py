"""Nodes that read one stored matrix in different layouts share one pair of factors: a table that is also a head.

The sites of one stored tensor are tied where

1. all read the same values: what is between the tensor and the nodes, after what decodes it for all of them, only moves
   it (Transpose, and Reshape to or from dimensions of 1);
2. these are a matrix, and each site's matrix is that or its transpose;
3. each can be written as a pair of two matrices (or as a lookup in one, and a product with the other).

Then W ~ L R is stored once, as it is looked up, or as the first site reads it. Sites that read W' are mirrored: theirs
is ``W' ~ R' L'``, so their first factor is R', and their second L'. A node that wants a stored factor transposed reads
it through a Transpose, which runtimes evaluate when they load the model, but for Gemm, which transposes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import EMBEDDING, PAIR, TIED
from lowrank_onnx.passes.graph_view import ModelView
from lowrank_onnx.passes.rule import TensorLayout, straight
from lowrank_onnx.passes.rules import RULE_OF
from lowrank_onnx.passes.weight_source import stored_dims
from lowrank_onnx.types import DecodeStep, Encoding, Rearrangement, Site, SiteChoice, WeightRef

_MOVES = ("transpose", "reshape")
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True, slots=True)
class TiedPart:
    """A new tensor as a tied site reads it: the layout in which it is stored for all, and whether it is transposed."""

    stored: TensorLayout
    transposed: bool


def tie_sites(view: ModelView, sites: Sequence[Site]) -> tuple[Site, ...] | None:
    """The sites of one stored tensor as readers of one matrix, in the tied form; None where they aren't that."""
    values = _common_values(view, sites)
    if values is None or ("", "Transpose") in view.local_functions:
        return None
    weight, fixed = values
    shape = weight.shape
    turned = [_is_turned(shape, site, fixed) for site in sites]
    lead = next((index for index, site in enumerate(sites) if site.forms[0] == EMBEDDING), 0)
    first = turned[lead]
    if first is None or None in turned:
        return None
    sizes = _long(shape)
    rows, columns = sizes[::-1] if first else sizes
    to_matrices = Rearrangement((1, *sizes), (0, 2, 1) if first else (0, 1, 2), (1, rows, columns))
    tied = tuple(
        replace(
            site,
            weight=weight,
            to_matrices=to_matrices,
            forms=(TIED,),
            bias=None,
            shares=None,
            native=site,
            mirrored=flipped != first,
        )
        for site, flipped in zip(sites, turned, strict=True)
    )
    nodes = [view.scopes[site.scope].nodes[site.node_index] for site in sites]
    written = (
        tied_parts(node, SiteChoice(site, TIED, 1, "", 0.0, 0.0)) for node, site in zip(nodes, tied, strict=True)
    )
    return tied if all(parts is not None for parts in written) else None


def _common_values(view: ModelView, sites: Sequence[Site]) -> tuple[WeightRef, int] | None:
    """The matrix that all sites read in some layout, and how many steps decode it from what is stored (case 1)."""
    decodings = [site.weight.encoding.steps if site.weight.encoding else () for site in sites]
    fixed = [len(steps) - _moves_at_the_end(steps) for steps in decodings]
    first = decodings[0][: fixed[0]]
    if any(steps[:count] != first for steps, count in zip(decodings, fixed, strict=True)):
        return None
    weight = sites[0].weight
    if not first:
        return replace(weight, shape=stored_dims(view, weight), encoding=None), 0
    encoding = weight.encoding
    assert encoding is not None, "it has steps"
    description = _ARROW.join(encoding.description.split(_ARROW)[: fixed[0]])
    return replace(weight, shape=first[-1].shape, encoding=Encoding(first, encoding.nbytes, description)), fixed[0]


_ARROW = " -> "
"""Between the operators of `Encoding.description`."""


def _moves_at_the_end(steps: Sequence[DecodeStep]) -> int:
    return next((count for count, step in enumerate(reversed(steps)) if step.operation not in _MOVES), len(steps))


def _long(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _is_turned(shape: tuple[int, ...], site: Site, fixed: int) -> bool | None:
    """Whether the site's matrix is the transpose of the values of `shape`; None where it is neither (case 2)."""
    steps = site.weight.encoding.steps[fixed:] if site.weight.encoding else ()
    turned = False
    for step in steps:
        if step.operation == "transpose":
            order = [axis for axis in step.axes if shape[axis] != 1]
            turned ^= order != sorted(order)
        elif _long(step.shape) != _long(shape):
            return None
        shape = step.shape
    move = site.to_matrices
    order = [axis for axis in move.order if move.split[axis] != 1]
    moved = tuple(move.split[axis] for axis in order)
    if len(order) != 2 or _long(move.split) != _long(shape) or moved != _long(move.merged):
        return None
    return turned ^ (order != sorted(order))


def tied_parts(node: onnx.NodeProto, choice: SiteChoice) -> tuple[tuple[str, TiedPart], ...] | None:
    """The tensors that a tied site is written with, by the parts of its own plain form; None in case 3.

    Parameters
    ----------
    node : the original.
    choice : of the tied form for the site.
    """
    own = own_choice(choice)
    if own.form not in (PAIR, EMBEDDING):
        return None
    dims = choice.form.part_shapes(choice.site.shape, choice.rank)
    parts = []
    for layout in RULE_OF[own.site.op_type].writers[own.form.name].layout(node, own):
        order = layout.arrangement.order
        if len(layout.shape) != 2 or layout.bias is not None or order not in ((0, 1, 2), (0, 2, 1)):
            return None
        mirrored = choice.site.mirrored
        part = _OTHER_SIDE[layout.part] if mirrored else layout.part
        transposed = (order == (0, 2, 1)) != mirrored
        parts.append((layout.part, TiedPart(straight(part, dims[part], dims[part][1:]), transposed)))
    return tuple(parts)


def own_choice(choice: SiteChoice) -> SiteChoice:
    """The choice as the site's own rule knows it: of its plain form, where it is tied to other sites."""
    own = choice.site.own
    return choice if own is choice.site else replace(choice, site=own, form=own.forms[0])


def read_transposed(
    nodes: Sequence[Any], transposed: Mapping[str, Any], value: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """New nodes that read stored tensors transposed: a Gemm by its attribute, others behind a Transpose.

    Parameters
    ----------
    nodes : read the stored tensors as if they were in the layout that is wanted.
    transposed : those whose layout is another, by name.
    value : makes the value that is the transpose of one.
    """
    turned: list[Any] = []
    for node in nodes:
        for slot, read in enumerate(node.inputs):
            stored = transposed.get(read.name)
            if stored is None:
                continue
            if node.op == "Gemm" and slot < 2:
                name = ("transA", "transB")[slot]
                node.attrs[name] = 1 - int(bool(node.attrs.get(name, 0)))
                continue
            node.inputs[slot] = value(stored)
            attributes = {"perm": [1, 0]}
            turned.append(gs.Node("Transpose", "transposed", attributes, [stored], [node.inputs[slot]]))
    return (*turned, *nodes)
