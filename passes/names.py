"""Names for new tensors and nodes that no graph and no function of the model uses yet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx

from lowrank_onnx.passes.graph_view import ModelView


class NewNames:
    """Claims unique names. Tensor names and node names are two name spaces, each over all scopes and functions."""

    def __init__(self, view: ModelView) -> None:
        self._tensors: set[str] = set()
        self._nodes: set[str] = set()
        self._next: dict[tuple[int, str], itertools.count[int]] = {}
        for scope in view.scopes.values():
            self._add_graph(scope.proto)
            self._add_nodes(scope.nodes)
        for function in view.skeleton.functions:
            self._tensors.update(function.input, function.output)
            self._add_deep(list(function.node))
        for info in view.skeleton.training_info:
            for graph in (info.initialization, info.algorithm):
                self._add_graph(graph)
                self._add_deep(list(graph.node))

    def tensor(self, wanted: str) -> str:
        """`wanted`, or the first of ``wanted_1``, ``wanted_2``, ... that no tensor has."""
        return self._claim(self._tensors, wanted)

    def node(self, wanted: str) -> str:
        """`wanted`, or the first of ``wanted_1``, ``wanted_2``, ... that no node has."""
        return self._claim(self._nodes, wanted)

    def _claim(self, taken: set[str], wanted: str) -> str:
        name = wanted
        counter = self._next.setdefault((id(taken), wanted), itertools.count(1))
        while name in taken:
            name = f"{wanted}_{next(counter)}"
        taken.add(name)
        return name

    def _add_graph(self, graph: onnx.GraphProto) -> None:
        for values in (graph.input, graph.output, graph.value_info):
            self._tensors.update(value.name for value in values)
        self._tensors.update(tensor.name for tensor in graph.initializer)
        self._tensors.update(tensor.values.name for tensor in graph.sparse_initializer)

    def _add_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            self._nodes.add(node.name)
            self._tensors.update(node.input, node.output)

    def _add_deep(self, nodes: list[onnx.NodeProto]) -> None:
        for node in nodes:  # Grows while it is walked.
            for attribute in node.attribute:
                for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                    self._add_graph(graph)
                    nodes.extend(graph.node)
        self._add_nodes(nodes)
