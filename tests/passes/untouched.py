"""What a rewrite changed, found by comparing bytes; anything that may not change is an assertion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx

from lowrank_onnx.passes.graph_view import child_graphs

Changes: TypeAlias = dict[str, tuple[list[str], list[str]]]

_LISTS: dict[str, Callable[[Any], str]] = {
    "node": lambda node: node.output[0] if node.output else node.name,
    "initializer": lambda tensor: str(tensor.name),
    "input": lambda value: str(value.name),
    "value_info": lambda value: str(value.name),
    "quantization_annotation": lambda entry: str(entry.tensor_name),
}


def changes(original: onnx.ModelProto, rewritten: onnx.ModelProto) -> Changes:
    """For each list of a graph: the names of the entries removed and added, over all scopes.

    Entries that are in both must have the same bytes and order; everything outside these lists must be equal.
    """
    found: Changes = {}
    assert _bytes(_without_graph(original)) == _bytes(_without_graph(rewritten))
    _compare(original.graph, rewritten.graph, found)
    return {field: change for field, change in found.items() if change != ([], [])}


def _compare(before: onnx.GraphProto, after: onnx.GraphProto, found: Changes) -> None:
    assert _bytes(_without_lists(before)) == _bytes(_without_lists(after))
    for field, name_of in _LISTS.items():
        old, new = list(getattr(before, field)), list(getattr(after, field))
        old_bytes, new_bytes = [_shell_bytes(entry) for entry in old], [_shell_bytes(entry) for entry in new]
        common = set(old_bytes) & set(new_bytes)
        assert [b for b in old_bytes if b in common] == [b for b in new_bytes if b in common], f"{field}: order changed"
        removed, added = found.setdefault(field, ([], []))
        removed += [name_of(entry) for entry, b in zip(old, old_bytes, strict=True) if b not in common]
        added += [name_of(entry) for entry, b in zip(new, new_bytes, strict=True) if b not in common]
        if field == "node":
            kept = (
                [entry for entry, b in zip(old, old_bytes, strict=True) if b in common],
                [entry for entry, b in zip(new, new_bytes, strict=True) if b in common],
            )
            for node, same_node in zip(*kept, strict=True):
                for (label, graph), (same_label, same) in zip(child_graphs(node), child_graphs(same_node), strict=True):
                    assert label == same_label
                    _compare(graph, same, found)


def _shell_bytes(entry: Any) -> bytes:
    """The bytes of an entry, for a node without the contents of its subgraphs (they are compared by themselves)."""
    if not isinstance(entry, onnx.NodeProto):
        return _bytes(entry)
    shell = onnx.NodeProto()
    shell.CopyFrom(entry)
    for attribute in shell.attribute:
        if attribute.HasField("g"):
            attribute.g.Clear()
        for graph in attribute.graphs:
            graph.Clear()
    return _bytes(shell)


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    return rest


def _without_lists(graph: onnx.GraphProto) -> onnx.GraphProto:
    rest = onnx.GraphProto()
    rest.CopyFrom(graph)
    for field in _LISTS:
        rest.ClearField(field)
    return rest


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def added_names(found: Changes, fields: Sequence[str]) -> set[str]:
    """Names added to any of `fields`."""
    return {name for field in fields for name in found.get(field, ([], []))[1]}
