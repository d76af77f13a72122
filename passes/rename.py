"""A function's nodes as they read at one call: under names of their own, with the call's attributes filled in."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from lowrank_onnx.passes.names import NewNames


class Renaming:
    """Renames one body for one call.

    Parameters
    ----------
    names : gives new names.
    label : of the call; new names begin with it.
    given : from names of the body to those that stand for them at the call: inputs, outputs, shared constants.
    arguments : the attributes that those of the body may refer to.
    """

    def __init__(
        self, names: NewNames, label: str, given: Mapping[str, str], arguments: Mapping[str, onnx.AttributeProto]
    ) -> None:
        self._names = names
        self._label = label
        self._tensors = {**given, "": ""}
        self._arguments = arguments

    def tensor(self, name: str) -> str:
        """What a name of the body is called outside of it; what the body doesn't define stays undefined."""
        if name not in self._tensors:
            self._tensors[name] = self._names.tensor(f"{self._label}/{name}")
        return self._tensors[name]

    def node(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node of the body, or of a graph inside it."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name:
            copy.name = self._names.node(f"{self._label}/{node.name}")
        copy.input[:] = [self.tensor(name) for name in node.input]
        copy.output[:] = [self.tensor(name) for name in node.output]
        del copy.attribute[:]
        for attribute in node.attribute:
            value = self._arguments.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if value is None:  # not given, and without a default: the operator's own default holds
                continue
            filled = copy.attribute.add()
            filled.CopyFrom(value)
            filled.name = attribute.name
            for graph in (*([filled.g] if filled.HasField("g") else []), *filled.graphs):
                self._graph(graph)
        return copy

    def _graph(self, graph: onnx.GraphProto) -> None:
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                value.name = self.tensor(value.name)
        for tensor in graph.initializer:
            tensor.name = self.tensor(tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = self.tensor(sparse.values.name)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = self.tensor(annotation.tensor_name)
            for entry in annotation.quant_parameter_tensor_names:
                entry.value = self.tensor(entry.value)
        nodes = [self.node(node) for node in graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
