"""The main graph as a flow of values: what each node reads, in which orders the nodes can run, pieces that run alone.

A value is constant if no input of the model reaches it: initializers, Constant nodes and what is computed from them. A
piece takes the constants it needs with it, however they are made, so that only values that differ from feed to feed
pass from one piece to the next.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from lowrank_onnx.passes.graph_view import child_graphs

_FIRST_WITHOUT_INITIALIZER_INPUTS = 4
"""The IR version from which an initializer needs no graph input of its name."""

_RANDOM = frozenset(("RandomNormal", "RandomUniform"))
"""Operators without an input whose output is nonetheless no constant."""


@dataclass(frozen=True, slots=True)
class Dataflow:
    """The main graph of a model.

    Attributes
    ----------
    skeleton : the model.
    reads : for each node, all values of the main graph that it or a subgraph inside it reads, each once.
    producers : value -> the node that makes it.
    readers : value -> the nodes that read it, ascending.
    constants : names of all constant values.
    outputs : names of the graph's outputs.
    """

    skeleton: onnx.ModelProto
    reads: tuple[tuple[str, ...], ...]
    producers: Mapping[str, int]
    readers: Mapping[str, tuple[int, ...]]
    constants: frozenset[str]
    outputs: tuple[str, ...]

    def node(self, index: int) -> onnx.NodeProto:
        """The node at a position of the main graph."""
        node: onnx.NodeProto = self.skeleton.graph.node[index]
        return node

    def varying(self, index: int) -> tuple[str, ...]:
        """What the node at `index` reads that isn't constant."""
        return tuple(name for name in self.reads[index] if name not in self.constants)

    def is_constant(self, index: int) -> bool:
        """Whether the node at `index` makes constants only."""
        return all(name in self.constants for name in self.node(index).output if name)


def read_dataflow(skeleton: onnx.ModelProto) -> Dataflow:
    """Index the main graph of a model; the nodes are in topological order, as ONNX demands."""
    graph = skeleton.graph
    reads = tuple(tuple(dict.fromkeys(_node_reads(node))) for node in graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(tensor.values.name for tensor in graph.sparse_initializer)
    producers: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in reads[index]:
            readers.setdefault(name, []).append(index)
        made = [name for name in node.output if name]
        producers.update(dict.fromkeys(made, index))
        if node.op_type not in _RANDOM and constants.issuperset(reads[index]):
            constants.update(made)
    return Dataflow(
        skeleton=skeleton,
        reads=reads,
        producers=producers,
        readers={name: tuple(nodes) for name, nodes in readers.items()},
        constants=frozenset(constants),
        outputs=tuple(value.name for value in graph.output),
    )


def _node_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads of the graph around it: its inputs, and what its subgraphs capture."""
    yield from (name for name in node.input if name)
    for _, graph in child_graphs(node):
        yield from _captured(graph)


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in _node_reads(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)


class Precedence:
    """Which node has to run before which: by the values that pass between them, and by demands added to that."""

    def __init__(self, flow: Dataflow) -> None:
        self._flow = flow
        self._demanded: dict[int, list[str]] = {}

    def demand(self, node: int, value: str) -> bool:
        """Have `value` made before `node` runs; False, and nothing is demanded, where it is made from that node."""
        if self._depends(value, node):
            return False
        self._demanded.setdefault(node, []).append(value)
        return True

    def order(self) -> tuple[int, ...]:
        """The nodes that the graph's outputs need, without those of constants, as near to the model's as can be."""
        needed = self._needed()
        waiting = {node: len(self._before(node)) for node in needed}
        after: dict[int, list[int]] = {}
        for node in needed:
            for earlier in self._before(node):
                after.setdefault(earlier, []).append(node)
        ready = [node for node, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            node = heapq.heappop(ready)
            order.append(node)
            for later in after.get(node, ()):
                waiting[later] -= 1
                if waiting[later] == 0:
                    heapq.heappush(ready, later)
        return tuple(order)

    def _before(self, node: int) -> set[int]:
        names = (*self._flow.varying(node), *self._demanded.get(node, ()))
        return {self._flow.producers[name] for name in names if name in self._flow.producers}

    def _needed(self) -> set[int]:
        flow, needed = self._flow, set[int]()
        pending = [flow.producers[name] for name in flow.outputs if name in flow.producers]
        while pending:
            node = pending.pop()
            if node not in needed and not flow.is_constant(node):
                needed.add(node)
                pending.extend(self._before(node))
        return needed

    def _depends(self, value: str, node: int) -> bool:
        pending, seen = [self._flow.producers.get(value)], set[int]()
        while pending:
            current = pending.pop()
            if current == node:
                return True
            if current is not None and current not in seen:
                seen.add(current)
                pending.extend(self._before(current))
        return False


def live_values(flow: Dataflow, order: Sequence[int], cut: int) -> tuple[str, ...]:
    """Values that aren't constant, are there before ``order[cut:]`` runs and are read by it or are graph outputs."""
    later = {name for node in order[cut:] for name in flow.varying(node)}
    later.update(name for name in flow.outputs if name not in flow.constants)
    made_later = {name for node in order[cut:] for name in flow.node(node).output}
    return tuple(sorted(later - made_later))


def extract_piece(
    flow: Dataflow, nodes: Sequence[int], inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[str]
) -> onnx.ModelProto:
    """Some nodes of the main graph as a model of their own, with the constants that they need.

    Parameters
    ----------
    nodes : in an order in which they can run; none makes constants only.
    inputs : what they read that isn't constant and that none of them makes.
    outputs : values that they make. They get no type, which onnxruntime infers.
    """
    source = flow.skeleton
    piece = onnx.ModelProto(ir_version=max(source.ir_version, _FIRST_WITHOUT_INITIALIZER_INPUTS))
    piece.opset_import.extend(source.opset_import)
    piece.functions.extend(source.functions)
    graph = piece.graph
    graph.name = "piece"
    made, needed = _constant_closure(flow, nodes)
    graph.node.extend(flow.node(index) for index in (*sorted(made), *nodes))
    graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in needed)
    graph.sparse_initializer.extend(
        tensor for tensor in source.graph.sparse_initializer if tensor.values.name in needed
    )
    graph.input.extend(inputs)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return piece


def _constant_closure(flow: Dataflow, nodes: Iterable[int]) -> tuple[set[int], set[str]]:
    """The nodes that make the constants which `nodes` read, and the names of all constants involved."""
    made, needed = set[int](), set[str]()
    pending = [name for node in nodes for name in flow.reads[node] if name in flow.constants]
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in flow.producers:
            made.add(flow.producers[name])
            pending.extend(flow.reads[flow.producers[name]])
    return made, needed


def nodes_between(
    flow: Dataflow, given: Iterable[str], wanted: Iterable[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The nodes that make some values of others, in the model's order, and which of the others they read.

    Parameters
    ----------
    given : values that are there.
    wanted : values that aren't, and that depend on nothing else but constants.
    """
    there, nodes, read = set(given), set[int](), dict[str, None]()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        node = flow.producers[name]
        if node in nodes:
            continue
        nodes.add(node)
        for value in flow.varying(node):
            if value in there:
                read[value] = None
            else:
                pending.append(value)
    return tuple(sorted(nodes)), tuple(sorted(read))


def changed_values(flow: Dataflow, nodes: Iterable[int]) -> frozenset[str]:
    """What some nodes make, and all that depends on it."""
    first, changed = set(nodes), set[str]()
    for index, node in enumerate(flow.skeleton.graph.node):
        if index in first or not changed.isdisjoint(flow.reads[index]):
            changed.update(name for name in node.output if name)
    return frozenset(changed)
