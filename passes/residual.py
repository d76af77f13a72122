"""Where a site writes into a sum: the residual stream of a transformer block or of a ResNet."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.passes.weight_source import is_default
from lowrank_onnx.types import Site


@dataclass(frozen=True, slots=True)
class Gain:
    """A stored constant that a site's output is multiplied with, or divided by."""

    name: str
    divides: bool


@dataclass(frozen=True, slots=True)
class Residual:
    """A site whose output y ends in a sum: ``sum = gains * (alpha * y + constants) + carried``.

    Attributes
    ----------
    node : the position of the sum's node in the main graph.
    carried : the other term of the sum.
    alpha : of a Gemm; 1 for all else.
    gains : the constants, e.g. a LayerScale, in the order in which they are met.
    """

    node: int
    carried: str
    alpha: float
    gains: tuple[Gain, ...]


def find_residual(flow: Dataflow, site: Site) -> Residual | None:
    """The sum that a site of the main graph writes into and nothing but it; None where it writes elsewhere.

    Between the site and the sum there may be additions of constants, products with stored constants, and nodes that
    change nothing; anything else, and every second use on the way, ends the search.
    """
    if site.scope:
        return None
    alpha = _alpha(flow.node(site.node_index))
    gains: list[Gain] = []
    value = site.output
    while True:
        readers = flow.readers.get(value, ())
        if len(readers) != 1 or value in flow.outputs:
            return None
        node = flow.node(readers[0])
        if list(node.input).count(value) != 1:
            return None
        others = [name for name in node.input if name and name != value]
        if is_default(node, "Add") and others[0] not in flow.constants:
            return Residual(readers[0], others[0], alpha, tuple(gains))
        if is_default(node, "Mul") or (is_default(node, "Div") and node.input[0] == value):
            if stored_constant(flow, others[0]) is None:
                return None
            gains.append(Gain(others[0], node.op_type == "Div"))
        elif not _keeps(flow, node, value, others):
            return None
        value = node.output[0]


def _alpha(node: onnx.NodeProto) -> float:
    return next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 1.0)


def _keeps(flow: Dataflow, node: onnx.NodeProto, value: str, others: list[str]) -> bool:
    """Whether the node only adds a constant to `value`, or nothing."""
    if is_default(node, "Add") or (is_default(node, "Sub") and node.input[0] == value):
        return others[0] in flow.constants
    if is_default(node, "Dropout"):
        return node.input[0] == value and len(node.input) < 3
    return is_default(node, "Identity")


def stored_constant(flow: Dataflow, name: str) -> onnx.TensorProto | None:
    """The tensor of an initializer, or of a Constant node's ``value``; None for all else."""
    tensors = [tensor for tensor in flow.skeleton.graph.initializer if tensor.name == name]
    if name in flow.producers and is_default(flow.node(flow.producers[name]), "Constant"):
        attributes = flow.node(flow.producers[name]).attribute
        tensors = [held.t for held in attributes if held.name == "value" and held.HasField("t")]
    return tensors[0] if tensors else None
