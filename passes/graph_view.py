"""The model as the pass sees it: every graph as onnx-graphsurgeon imports it, beside the original proto.

onnx-graphsurgeon gives the nodes to match and to edit. Each graph is imported by itself, so what a name means is
resolved on the original protos, scope by scope (an inner graph may hide an outer name). `ModelView.uses` counts every
use of every tensor, outputs of all graphs included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.logger import G_LOGGER

from lowrank_onnx.errors import ModelError
from lowrank_onnx.passes.sanitize import importable_copy
from lowrank_onnx.passes.value_types import Dims, value_dims
from lowrank_onnx.types import Scope

MAX_NESTING = 30
"""Deepest nesting of subgraphs: protobuf allows 100 nested messages, and the type of a new value in the innermost graph
needs some of them."""

GRAPH_OUTPUT = -1
"""Stands for a node index where a tensor is used as an output of its graph."""


@dataclass(frozen=True, slots=True)
class Use:
    """A place that reads a tensor: an input slot of a node, or (node index `GRAPH_OUTPUT`) an output of a graph."""

    scope: Scope
    node_index: int
    slot: int


@dataclass(eq=False, slots=True)
class ScopeView:
    """One graph: its proto, what onnx-graphsurgeon made of it, and its names."""

    scope: Scope
    path: str
    proto: onnx.GraphProto
    graph: Any
    parent: ScopeView | None
    nodes: Sequence[onnx.NodeProto]
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    sparse: dict[str, onnx.SparseTensorProto] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    producers: dict[str, int] = field(default_factory=dict)
    types: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def defines(self, name: str) -> bool:
        """True if `name` gets its value in this graph."""
        return name in self.initializers or name in self.producers or name in self.inputs or name in self.sparse

    def resolve(self, name: str) -> ScopeView | None:
        """The innermost graph, from this one outwards, that defines `name`."""
        view: ScopeView | None = self
        while view is not None and not view.defines(name):
            view = view.parent
        return view

    def dims(self, name: str) -> Dims | None:
        """The shape of `name` as seen from this graph, or None where the model doesn't state it."""
        owner = self.resolve(name)
        if owner is None:
            return None
        if name in owner.initializers:
            return tuple(owner.initializers[name].dims)
        return value_dims(owner.types[name]) if name in owner.types else None

    def label(self, index: int) -> str:
        """A readable name of the node at `index`: its own, else its first output's, else operator and position."""
        return _label(self.nodes[index]) or f"{self.nodes[index].op_type}_{index}"


@dataclass(eq=False, slots=True)
class ModelView:
    """All graphs of a model, outer before inner, and the uses of every (scope, name)."""

    skeleton: onnx.ModelProto
    scopes: dict[Scope, ScopeView]
    uses: dict[tuple[Scope, str], list[Use]]
    local_functions: frozenset[tuple[str, str]]
    """(domain, name) of the model-local functions; the default domain is ''."""

    @property
    def inputs_hold_initializers(self) -> bool:
        """True below IR version 4: every initializer must also be a graph input, and can't be overridden."""
        return self.skeleton.ir_version < 4


def default_domain(domain: str) -> str:
    """'' for both spellings of the default operator domain."""
    return "" if domain == "ai.onnx" else domain


def view_model(skeleton: onnx.ModelProto) -> ModelView:
    """Import `skeleton` and index its names.

    Raises
    ------
    ModelError
        Names that aren't UTF-8, subgraphs nested deeper than `MAX_NESTING`, or a part that onnx-graphsurgeon can't
        import; the message names it.
    """
    scopes = _walk(skeleton)
    _import_graphs(skeleton, scopes)
    functions = frozenset((default_domain(function.domain), function.name) for function in skeleton.functions)
    return ModelView(skeleton, scopes, _count_uses(scopes), functions)


def child_graphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The subgraphs of a node with the label that `Scope` gives them: the attribute's name, ``name[i]`` in a list."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for position, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}[{position}]", graph


def _label(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _walk(skeleton: onnx.ModelProto) -> dict[Scope, ScopeView]:
    scopes: dict[Scope, ScopeView] = {}
    pending = [_index_scope((), "", skeleton.graph, None)]
    while pending:
        view = pending.pop()
        if view.scope in scopes:
            raise ModelError(f"{view.path}: two subgraphs of one node share this name; re-export the model")
        scopes[view.scope] = view
        if len(view.scope) > MAX_NESTING:
            raise ModelError(f"{view.path}: subgraphs are nested more than {MAX_NESTING} deep; flatten the model")
        inner = [
            _index_scope((*view.scope, (index, label)), f"{view.path}{view.label(index)}/{label}/", graph, view)
            for index, node in enumerate(view.nodes)
            if node.attribute
            for label, graph in child_graphs(node)
        ]
        pending.extend(reversed(inner))
    return scopes


def _index_scope(scope: Scope, path: str, proto: onnx.GraphProto, parent: ScopeView | None) -> ScopeView:
    view = ScopeView(scope, path, proto, None, parent, list(proto.node))
    _check_names(view)
    for tensor in proto.initializer:
        _define(view, tensor.name, view.initializers, tensor)
    for sparse in proto.sparse_initializer:
        _define(view, sparse.values.name, view.sparse, sparse)
    view.inputs = {value.name for value in proto.input}
    for index, node in enumerate(view.nodes):
        for name in node.output:
            if name:
                _define(view, name, view.producers, index)
    view.repeated |= view.inputs & view.producers.keys()
    for values in (proto.value_info, proto.output, proto.input):
        view.types.update((value.name, value) for value in values)
    return view


def _define(view: ScopeView, name: str, definitions: dict[str, Any], definition: object) -> None:
    if name in view.initializers or name in view.sparse or name in view.producers:
        view.repeated.add(name)
    else:
        definitions[name] = definition


def _check_names(view: ScopeView) -> None:
    graph = view.proto
    names = [value.name for values in (graph.input, graph.output, graph.value_info) for value in values]
    names += [tensor.name for tensor in graph.initializer]
    names += [tensor.values.name for tensor in graph.sparse_initializer]
    for node in view.nodes:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    bad = next((name for name in names if not isinstance(name, str)), None)
    if bad is not None:
        raise ModelError(f"graph {view.path or 'main'}: the name {bad!r} isn't valid UTF-8; rename it in the exporter")


def _import_graphs(skeleton: onnx.ModelProto, scopes: dict[Scope, ScopeView]) -> None:
    with quiet_graphsurgeon():
        for view in scopes.values():
            graph = importable_copy(view.proto)
            try:
                view.graph = OnnxImporter.import_graph(graph, import_domains=skeleton.opset_import)
            except Exception as error:
                raise ModelError(_import_problem(graph, view.path, error)) from error


def quiet_graphsurgeon() -> Any:
    """A context in which onnx-graphsurgeon prints nothing (it prints to standard output, errors that it raises too)."""
    return G_LOGGER.suppress(G_LOGGER.CRITICAL + 1)


def _import_problem(graph: onnx.GraphProto, path: str, error: Exception) -> str:
    """Name the construct that the importer refused, by importing the graph's parts one by one."""
    values = (*graph.input, *graph.output, *graph.value_info)
    parts = [
        *((f"initializer '{path}{t.name}'", onnx.GraphProto(initializer=[t])) for t in graph.initializer),
        *((f"value '{path}{v.name}'", onnx.GraphProto(value_info=[v])) for v in values),
        *((f"node '{path}{_label(n)}' ({n.op_type})", onnx.GraphProto(node=[n])) for n in graph.node),
    ]
    what = next((name for name, part in parts if not _is_importable(part)), f"graph '{path or 'main'}'")
    first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"onnx-graphsurgeon can't import {what}: {first_line}; remove or re-export it"


def _is_importable(graph: onnx.GraphProto) -> bool:
    try:
        OnnxImporter.import_graph(graph)
    except Exception:
        return False
    return True


def _count_uses(scopes: dict[Scope, ScopeView]) -> dict[tuple[Scope, str], list[Use]]:
    uses: dict[tuple[Scope, str], list[Use]] = {}

    def record(view: ScopeView, name: str, use: Use) -> None:
        owner = view.resolve(name) if name else None
        if owner is not None:
            uses.setdefault((owner.scope, name), []).append(use)

    for view in scopes.values():
        for index, node in enumerate(view.nodes):
            for slot, name in enumerate(node.input):
                record(view, name, Use(view.scope, index, slot))
        for slot, value in enumerate(view.proto.output):
            record(view, value.name, Use(view.scope, GRAPH_OUTPUT, slot))
    return uses
