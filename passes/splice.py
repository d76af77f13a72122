"""Put new nodes and tensors into a copy of the original, and take out what they replace; all else keeps its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from lowrank_onnx.passes.graph_view import child_graphs
from lowrank_onnx.types import Scope


@dataclass(slots=True)
class ScopeEdit:
    """What changes in one graph. Node indices are those of the original.

    `gone` are the names of tensors that no longer exist: initializers, and outputs of the removed nodes.
    """

    replaced: dict[int, tuple[onnx.NodeProto, ...]] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    value_info: list[onnx.ValueInfoProto] = field(default_factory=list)


def splice(skeleton: onnx.ModelProto, edits: Mapping[Scope, ScopeEdit]) -> onnx.ModelProto:
    """A copy of `skeleton` with `edits` applied; inner graphs first, while the outer node indices still hold."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    for scope in sorted(edits, key=len, reverse=True):
        _apply(graph_at(model.graph, scope), edits[scope])
    return model


def graph_at(graph: onnx.GraphProto, scope: Scope) -> onnx.GraphProto:
    """The graph at `scope`, seen from the main graph; KeyError where there is none."""
    for index, label in scope:
        graph = dict(child_graphs(graph.node[index]))[label]
    return graph


def _apply(graph: onnx.GraphProto, edit: ScopeEdit) -> None:
    if edit.replaced or edit.removed:
        nodes = [
            new
            for index, node in enumerate(graph.node)
            if index not in edit.removed
            for new in edit.replaced.get(index, (node,))
        ]
        del graph.node[:]
        graph.node.extend(nodes)
    _drop(graph.initializer, (tensor.name in edit.gone for tensor in graph.initializer))
    _drop(graph.input, (value.name in edit.gone for value in graph.input))
    _drop(graph.value_info, (value.name in edit.gone for value in graph.value_info))
    _drop(graph.quantization_annotation, (entry.tensor_name in edit.gone for entry in graph.quantization_annotation))
    graph.initializer.extend(edit.initializers)
    graph.input.extend(edit.inputs)
    graph.value_info.extend(edit.value_info)


def _drop(entries: Any, gone: Iterable[bool]) -> None:
    for position in reversed([position for position, drop in enumerate(gone) if drop]):
        del entries[position]
