"""A copy of a model in which chosen weights can be overridden at run time: one session then serves all of them.

From IR version 4 on, an initializer that is a graph input too has its stored value by default, and another one where a
feed gives it. So in the copy

1. a weight of the main graph becomes an initializer and an input, under its own name (a Constant node is removed);
2. a weight stored in a subgraph moves up into the main graph under a new name, and what read it reads that name: an
   inner graph sees the values of the outer ones. That needs the weight not to be an output of its subgraph, which has
   to be a value of that graph;
3. a weight that is stored in another type or layout gets a tensor of the main graph that holds what its nodes would
   decode, and its nodes read that, tied ones through what moves it into their layout; there is room for
   `MOST_DECODED_BYTES` of such tensors;
4. the IR version is raised to 4 where it is lower. Below 4 every initializer is an input that can't be overridden; the
   others stop being inputs, and so stay constants for the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank_onnx.passes.graph_view import GRAPH_OUTPUT, ModelView, ScopeView, view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.rule import weight_slot
from lowrank_onnx.types import Array, DecodeStep, Encoding, Site, WeightRef

MOST_DECODED_BYTES = 1 << 30
"""Decoded weights lie in the copy itself, which can't exceed 2 GB."""

_FIRST_OVERRIDABLE = 4


@dataclass(frozen=True, slots=True)
class OverridableModel:
    """The copy, and for each weight the name under which a feed overrides it.

    `reasons` has the weights that can't be overridden, each with the reason.
    """

    skeleton: onnx.ModelProto
    names: dict[WeightRef, str]
    reasons: dict[WeightRef, str]


def make_overridable(
    skeleton: onnx.ModelProto,
    weights: Iterable[WeightRef],
    *,
    readers: Mapping[WeightRef, Sequence[Site]] = MappingProxyType({}),
    decode: Callable[[WeightRef], Array] | None = None,
) -> OverridableModel:
    """Copy a model so that the values of `weights` can be given at run time.

    Parameters
    ----------
    skeleton : the model, with or without the bytes of its weights; it is not changed.
    weights : of this model. All that reads one of them gets the values that a feed gives.
    readers : all sites of the weights that are stored with an encoding.
    decode : the values of such a weight as its sites read them; without it, it can't be overridden.

    Raises
    ------
    ModelError
        onnx-graphsurgeon can't import the model.
    ValueError
        The model has no such weight.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    view = view_model(copy)
    names = NewNames(view)
    claimed: dict[WeightRef, str] = {}
    reasons: dict[WeightRef, str] = {}
    moved: list[tuple[WeightRef, onnx.TensorProto]] = []
    moves: list[onnx.NodeProto] = []
    room = MOST_DECODED_BYTES
    for weight in dict.fromkeys(weights):
        tensor = _stored(view, weight)
        if weight.encoding is not None:
            size = weight.itemsize * prod(weight.shape)
            if decode is None or weight not in readers or size > room:
                reasons[weight] = f"weight '{weight.name}' is stored as {weight.encoding.description}"
                if decode is not None:
                    reasons[weight] += f", and too large ({size:,} bytes) to be decoded beside the others"
                continue
            room -= size
            claimed[weight] = names.tensor(f"{weight.name}.decoded")
            copy.graph.initializer.append(numpy_helper.from_array(decode(weight), claimed[weight]))
            moves += _read_decoded(view, names, claimed[weight], weight.encoding, readers[weight])
            continue
        if weight.scope and _is_graph_output(view, weight):
            reasons[weight] = f"weight '{weight.name}' is also an output of its subgraph"
            continue
        claimed[weight] = names.tensor(weight.name) if weight.scope else weight.name
        if weight.scope or weight.storage == "constant":
            moved.append((weight, _renamed(tensor, claimed[weight])))
        if weight.scope:
            _read_instead(view, weight, claimed[weight])
    for scope in reversed(view.scopes.values()):
        _remove_definitions(scope, [weight for weight, _ in moved if weight.scope == scope.scope])
    copy.graph.initializer.extend(tensor for _, tensor in moved)
    for number, node in enumerate(moves):
        copy.graph.node.insert(number, node)
    _set_inputs(copy, claimed.values())
    return OverridableModel(copy, claimed, reasons)


def _read_decoded(
    view: ModelView, names: NewNames, decoded: str, encoding: Encoding, sites: Iterable[Site]
) -> list[onnx.NodeProto]:
    """Let sites read a decoded weight; the nodes that move it into the layout of those that read it in another."""
    moves: list[onnx.NodeProto] = []
    for site in sites:
        node, own = view.scopes[site.scope].nodes[site.node_index], site.own.weight.encoding
        further = own.steps[len(encoding.steps) :] if own else ()
        nodes, node.input[weight_slot(node, site)] = _move(view.scopes[()].proto, names, decoded, further)
        moves += nodes
    return moves


def _move(
    graph: onnx.GraphProto, names: NewNames, name: str, steps: Iterable[DecodeStep]
) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that bring a tensor into another layout, and the name of what they make; new shapes go to `graph`."""
    nodes = []
    for step in steps:
        made = names.tensor(f"{name}.moved")
        if step.operation == "transpose":
            nodes.append(helper.make_node("Transpose", [name], [made], perm=step.axes))
        else:
            wanted = names.tensor(f"{made}.shape")
            graph.initializer.append(numpy_helper.from_array(np.array(step.shape, np.int64), wanted))
            nodes.append(helper.make_node("Reshape", [name, wanted], [made]))
        name = made
    return nodes, name


def _stored(view: ModelView, weight: WeightRef) -> onnx.TensorProto:
    scope = view.scopes.get(weight.scope)
    if scope is not None and weight.storage == "initializer" and weight.name in scope.initializers:
        return scope.initializers[weight.name]
    if scope is not None and weight.storage == "constant" and weight.name in scope.producers:
        for attribute in scope.nodes[scope.producers[weight.name]].attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                tensor: onnx.TensorProto = attribute.t
                return tensor
    raise ValueError(f"the model has no {weight.storage} {weight.name!r} in scope {weight.scope!r}")


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _is_graph_output(view: ModelView, weight: WeightRef) -> bool:
    return any(use.node_index == GRAPH_OUTPUT for use in view.uses.get((weight.scope, weight.name), ()))


def _read_instead(view: ModelView, weight: WeightRef, name: str) -> None:
    for use in view.uses.get((weight.scope, weight.name), ()):
        view.scopes[use.scope].nodes[use.node_index].input[use.slot] = name


def _remove_definitions(scope: ScopeView, weights: Sequence[WeightRef]) -> None:
    """Take the weights out of their graph; node positions change, so this comes after all that goes by them."""
    constants = {scope.producers[weight.name] for weight in weights if weight.storage == "constant"}
    initializers = {weight.name for weight in weights if weight.storage == "initializer"}
    for index in sorted(constants, reverse=True):
        del scope.proto.node[index]
    for index, tensor in reversed(list(enumerate(scope.proto.initializer))):
        if tensor.name in initializers:
            del scope.proto.initializer[index]


def _set_inputs(model: onnx.ModelProto, overridable: Iterable[str]) -> None:
    graph = model.graph
    wanted = set(overridable)
    fixed = {tensor.name for tensor in graph.initializer} - wanted
    if model.ir_version < _FIRST_OVERRIDABLE:
        model.ir_version = _FIRST_OVERRIDABLE
        for index, value in reversed(list(enumerate(graph.input))):
            if value.name in fixed:
                del graph.input[index]
    present = {value.name for value in graph.input}
    for index, value in reversed(list(enumerate(graph.value_info))):
        if value.name in wanted:
            del graph.value_info[index]
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in graph.initializer
        if tensor.name in wanted and tensor.name not in present
    )
