"""Operators that hold weights and aren't rewritten: listed with a reason, so that no weight is passed over silently."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from lowrank_onnx.passes.graph_view import ModelView, ScopeView, default_domain
from lowrank_onnx.passes.weight_source import Activation, StoredWeight, WeightSources

_RECURRENT = "recurrent weights: the recurrence runs inside the operator, which takes dense weights only"
_INTEGER = "integer arithmetic on a quantized weight: factorize before quantizing"

# Operator of the default domain -> (inputs that may hold a weight, reason).
_DEFAULT_DOMAIN: dict[str, tuple[tuple[int, ...], str]] = {
    "LSTM": ((1, 2), _RECURRENT),
    "GRU": ((1, 2), _RECURRENT),
    "RNN": ((1, 2), _RECURRENT),
    "DeformConv": ((1,), "DeformConv isn't covered"),
    "MatMulInteger": ((0, 1), _INTEGER),
    "ConvInteger": ((1,), _INTEGER),
    "QLinearMatMul": ((0, 3), _INTEGER),
    "QLinearConv": ((3,), _INTEGER),
}


def uncovered_weight(
    view: ModelView, scope: ScopeView, node: onnx.NodeProto, sources: WeightSources
) -> tuple[str, int] | None:
    """The reason why the weights of `node` are left alone and their number, or None if it holds none.

    A weight, here, is a constant of at least two dimensions.
    """
    domain = default_domain(node.domain)
    if (domain, node.op_type) in view.local_functions:
        slots, reason = tuple(range(len(node.input))), "weight is passed to a model-local function"
    elif domain == "":
        slots, reason = _DEFAULT_DOMAIN.get(node.op_type, ((), ""))
    else:
        slots, reason = tuple(range(len(node.input))), f"operator {node.op_type} of domain '{domain}' isn't covered"
    parameters = sum(_weights(scope, node, slots, sources))
    return (reason, parameters) if parameters else None


def _weights(scope: ScopeView, node: onnx.NodeProto, slots: Iterable[int], sources: WeightSources) -> Iterable[int]:
    for slot in slots:
        if slot >= len(node.input) or not node.input[slot]:
            continue
        source = sources.find(scope, node.input[slot])
        if isinstance(source, Activation):
            continue
        dims = source.ref.shape if isinstance(source, StoredWeight) else scope.dims(node.input[slot])
        if dims is None or len(dims) >= 2:
            yield source.parameters
