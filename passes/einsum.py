"""Einsum that multiplies an activation by a weight: ``X,W->Y`` becomes ``X,L->Z`` and ``Z,R->Y``.

Each label of the weight is either summed over (it is in the activation and not in the output) or new (in the output and
not in the activation). Then the weight is a matrix from the first kind to the second, whatever the order of the labels,
and two Einsums with a label of their own for the rank apply its factors. The activation keeps its order and its
ellipsis.

Declined: an equation without "->", other than two terms, a label that is repeated within a term, an ellipsis in the
weight, and a label that weight, activation and output share: that is a batch of different matrices.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import PAIR
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import (
    Candidate,
    Parts,
    Rule,
    TensorLayout,
    Writer,
    node_problem,
    straight,
    too_small,
    weight_operand,
    weight_slot,
)
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped

_ATTRIBUTES = {"equation": onnx.AttributeProto.STRING}
_ELLIPSIS = "..."
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


@dataclass(frozen=True, slots=True)
class Product:
    """The labels of a matrix product: of the activation, the weight and the output; `rank` is one that none has."""

    activation: str
    weight: str
    output: str
    rank: str

    @property
    def summed(self) -> str:
        """The weight's labels that are summed over, in the weight's order."""
        return "".join(label for label in self.weight if label not in self.output)

    @property
    def new(self) -> str:
        """The weight's labels that the output has from it, in the weight's order."""
        return "".join(label for label in self.weight if label in self.output)

    @property
    def middle(self) -> str:
        """Of the activation between the factors."""
        return "".join(label for label in self.activation if label not in self.summed) + self.rank


def parse_product(equation: str, slot: int) -> Product | str:
    """The product that an equation with the weight as term `slot` stands for, or the reason why it is none."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or not all(map(_TERM.fullmatch, (*terms, output))):
        return f"equation '{equation}' isn't two terms and an output"
    activation, weight = terms[1 - slot], terms[slot]
    labels = [term.replace(_ELLIPSIS, "") for term in (activation, weight, output)]
    if any(len(set(term)) != len(term) for term in labels):
        return f"equation '{equation}' repeats a label within a term"
    if _ELLIPSIS in weight or (_ELLIPSIS in activation) != (_ELLIPSIS in output):
        return f"equation '{equation}' has an ellipsis in the weight, or one that is summed over"
    if any(label in labels[0] and label in labels[2] for label in labels[1]):
        return f"equation '{equation}' has a batch of different matrices as its weight"
    product = Product(activation, weight, output, _unused(equation))
    summed = {label for label in labels[0] if label not in labels[2]}
    known = set(labels[0]) | set(labels[1])
    if not (product.rank and product.new) or summed != set(product.summed) or not set(labels[2]) <= known:
        return f"equation '{equation}' is no matrix product"
    return product


def _unused(equation: str) -> str:
    return next((label for label in string.ascii_letters if label not in equation), "")


def match_einsum(candidate: Candidate) -> Site | Skipped:
    """A site for a weight as either term, or the reason for none."""
    problem = node_problem(candidate, inputs=(2, 2), attributes=_ATTRIBUTES)
    if problem:
        return candidate.skip(problem)
    operand = weight_operand(candidate)
    if isinstance(operand, Skipped):
        return operand
    slot, weight = operand
    product = parse_product(_equation(candidate.proto), slot)
    if isinstance(product, str):
        return candidate.skip(product, weight)
    shape = weight.ref.shape
    if len(product.weight) != len(shape):
        return candidate.skip(f"weight has shape {list(shape)}, and the equation calls it '{product.weight}'", weight)
    in_features, out_features = (math.prod(_sizes(product, shape, kind)) for kind in (product.summed, product.new))
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    order = tuple(product.weight.index(label) for label in product.summed + product.new)
    return candidate.site(
        weight,
        slot=1 - slot,
        to_matrices=Rearrangement(shape, order, (1, in_features, out_features)),
        forms=(PAIR,),
        counted=candidate.proto.output[0],
        features=out_features,
    )


def _equation(node: onnx.NodeProto) -> str:
    return next((attribute.s.decode("utf-8", "replace") for attribute in node.attribute), "")


def _sizes(product: Product, shape: tuple[int, ...], labels: str) -> tuple[int, ...]:
    return tuple(shape[product.weight.index(label)] for label in labels)


def _product(equation: str, slot: int) -> Product:
    product = parse_product(equation, slot)
    assert isinstance(product, Product), "the node was matched"
    return product


def pair_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """L with the labels that are summed over, then the rank; R with the rank, then the new labels."""
    site, rank = choice.site, choice.rank
    product = _product(_equation(node), weight_slot(node, site))
    summed, new = (_sizes(product, site.weight.shape, labels) for labels in (product.summed, product.new))
    return (
        straight("left", (1, site.shape.in_features, rank), (*summed, rank)),
        straight("right", (1, rank, site.shape.out_features), (rank, *new)),
    )


def emit_pair(parts: Parts) -> tuple[Any, ...]:
    """Two Einsums."""
    slot = 1 if parts.inputs[0].name == parts.site.input else 0
    product, activation = _product(parts.attributes["equation"], slot), parts.inputs[1 - slot]
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    first = f"{product.activation},{product.summed}{product.rank}->{product.middle}"
    second = f"{product.middle},{product.rank}{product.new}->{product.output}"
    return (
        gs.Node("Einsum", "left", attrs={"equation": first}, inputs=[activation, left], outputs=[mid]),
        gs.Node("Einsum", attrs={"equation": second}, inputs=[mid, right], outputs=parts.outputs),
    )


def pair_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    """Between the two factors: the activation's dimensions that aren't summed over, then the rank."""
    site = choice.site
    node = scope.nodes[site.node_index]
    product, dims = _product(_equation(node), weight_slot(node, site)), scope.dims(site.input)
    if dims is None or _ELLIPSIS in product.activation or len(dims) != len(product.activation):
        return {"mid": None}
    kept = (size for label, size in zip(product.activation, dims, strict=True) if label not in product.summed)
    return {"mid": (*kept, choice.rank)}


RULE = Rule("Einsum", match_einsum, {"pair": Writer(pair_layout, pair_values, emit_pair)})
"""The rule of Einsum."""
