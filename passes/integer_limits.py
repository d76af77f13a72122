"""How large the values of integer inputs may be: an index into a table must stay below the table's length.

An input that reaches the indices of a Gather, through nodes that only move or convert values, is limited by the size of
the gathered axis; the smallest limit of all its Gathers counts. Inputs that reach none have no entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx

_MOVES_VALUES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def integer_limits(skeleton: onnx.ModelProto) -> dict[str, int]:
    """For each integer input of the main graph that indexes a table: one more than its largest safe value."""
    sizes: dict[str, tuple[int, ...]] = {}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for graph in _graphs(skeleton.graph):
        sizes.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value" and node.output:
                    sizes[node.output[0]] = tuple(attribute.t.dims)
            for name in set(node.input):
                readers[name].append(node)
    found = {}
    for value in skeleton.graph.input:
        if value.type.tensor_type.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            limits = list(_limits_behind(value.name, readers, sizes))
            if limits:
                found[value.name] = min(limits)
    return found


def _limits_behind(
    name: str, readers: dict[str, list[onnx.NodeProto]], sizes: dict[str, tuple[int, ...]]
) -> Iterator[int]:
    pending, seen = [name], {name}
    while pending:
        current = pending.pop()
        for node in readers.get(current, ()):
            if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] == current:
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                dims = sizes.get(node.input[0], ())
                if -len(dims) <= axis < len(dims) and dims[axis] > 0:
                    yield dims[axis]
            elif node.op_type in _MOVES_VALUES:
                pending.extend(output for output in node.output if output and output not in seen)
                seen.update(node.output)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(a.g for node in current.node for a in node.attribute if a.HasField("g"))
