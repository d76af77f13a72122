"""Calls of model-local functions, written out where they are made, and folded back where nothing came of it.

A function's body is stored once, and each call brings its own weights. So the pass looks at a copy of the model in
which the calls stand written out: their nodes are ordinary nodes there, with names of their own, and every stage
treats them as such. After a rewrite each call whose nodes are all as they were becomes the call that it was. A function
that is still called is kept; one that has lost its last call leaves.

A constant in the body of a function that is called more than once becomes one initializer for all calls, so that a
weight that is stored once stays so; such a function's calls are folded back together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from lowrank_onnx.passes.callable_functions import FunctionKey, Survey, call_key, function_key, survey_functions
from lowrank_onnx.passes.graph_view import MAX_NESTING, child_graphs, view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.rename import Renaming


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it stood, and the nodes that took its place (calls among them not yet written out)."""

    node: onnx.NodeProto
    body: tuple[onnx.NodeProto, ...]

    @property
    def function(self) -> FunctionKey:
        """What is called."""
        return call_key(self.node)


@dataclass(frozen=True, slots=True)
class Expansion:
    """A model with its calls written out, and what it takes to fold them back.

    Attributes
    ----------
    skeleton : the model to find and rewrite sites in; the original itself where no call was written out.
    calls : outer ones before those in their bodies.
    functions : all of the original's; `skeleton` has those that are still called, or never were.
    unused : those of them that nothing called.
    hoisted : for each initializer that stands for a constant in a body, the function.
    kept : why functions that hold weights stay as they are.
    """

    skeleton: onnx.ModelProto
    calls: tuple[Call, ...] = ()
    functions: tuple[onnx.FunctionProto, ...] = ()
    unused: frozenset[FunctionKey] = frozenset()
    hoisted: Mapping[str, FunctionKey] = field(default_factory=dict)
    kept: Mapping[FunctionKey, str] = field(default_factory=dict)


def expand_calls(skeleton: onnx.ModelProto) -> Expansion:
    """Write out the calls of functions that hold nodes which could be sites; `skeleton` isn't changed.

    Raises
    ------
    ModelError
        As `view_model` does.
    """
    survey = survey_functions(skeleton)
    if not survey.callable:
        return Expansion(skeleton, kept=survey.kept)
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    writer = _CallWriter(copy, survey)
    writer.write_out(copy.graph, 0)
    copy.graph.initializer.extend(writer.constants.values())
    by_key = {function_key(function): function for function in skeleton.functions}
    unused = frozenset(by_key.keys() - _called(skeleton, by_key))
    _keep_called(copy, skeleton.functions, unused)
    hoisted = {tensor.name: key for (key, _), tensor in writer.constants.items()}
    return Expansion(copy, tuple(writer.calls), tuple(skeleton.functions), unused, hoisted, survey.kept)


def fold_calls(rewritten: onnx.ModelProto, expansion: Expansion) -> onnx.ModelProto:
    """Put the calls back whose nodes a rewrite of ``expansion.skeleton`` has left alone; `rewritten` isn't changed."""
    if not expansion.calls:
        return rewritten
    hoisting = set(expansion.hoisted.values())
    together: set[FunctionKey] = set()
    while True:
        folded = onnx.ModelProto()
        folded.CopyFrom(rewritten)
        folding = _Folding([call for call in expansion.calls if call.function not in together])
        folding.fold(folded.graph)
        left_open = {call.function for call in folding.remaining()} | together
        if not (left_open & hoisting) - together:
            break
        together |= left_open & hoisting
    unread = {name for name, function in expansion.hoisted.items() if function not in left_open}
    tensors = folded.graph.initializer
    for index in reversed([index for index, tensor in enumerate(tensors) if tensor.name in unread]):
        del tensors[index]
    _keep_called(folded, expansion.functions, expansion.unused)
    return folded


class _CallWriter:
    """Writes calls out, graph by graph."""

    def __init__(self, model: onnx.ModelProto, survey: Survey) -> None:
        self.calls: list[Call] = []
        self.constants: dict[tuple[FunctionKey, str], onnx.TensorProto] = {}
        self._survey = survey
        self._names = NewNames(view_model(model))

    def write_out(self, graph: onnx.GraphProto, depth: int) -> None:
        """Replace the calls in a graph, and in the graphs inside it, that stand `depth` graphs deep."""
        pending = list(reversed(graph.node))
        nodes: list[onnx.NodeProto] = []
        while pending:
            node = pending.pop()
            body = self._body(node, depth)
            if body is None:
                nodes.append(node)
                continue
            self.calls.append(Call(_copied(node), tuple(_copied(inner) for inner in body)))
            pending.extend(reversed(body))
        del graph.node[:]
        graph.node.extend(nodes)
        for node in graph.node:
            for _, inner in child_graphs(node):
                self.write_out(inner, depth + 1)

    def _body(self, call: onnx.NodeProto, depth: int) -> list[onnx.NodeProto] | None:
        """The nodes of a call under new names; None for what isn't a call that can be written out."""
        key = call_key(call)
        entry = self._survey.callable.get(key)
        if entry is None or depth + entry.nesting > MAX_NESTING or not _fits(call, entry.function):
            return None
        function = entry.function
        inputs = dict(zip(function.input, (*call.input, *[""] * len(function.input)), strict=False))
        label = call.name or next(name for name in call.output if name)
        shared = self._shared_constants(function, key) if entry.calls > 1 else {}
        outputs: dict[str, str] = {}
        copies: list[tuple[str, str]] = []
        for formal, actual in zip(function.output, call.output, strict=False):
            if not actual:
                continue
            if formal in inputs or formal in outputs:
                copies.append((formal, actual))
            else:
                outputs[formal] = actual
        renaming = Renaming(self._names, label, {**shared, **inputs, **outputs}, _arguments(function, call))
        body = [renaming.node(node) for node in function.node if not (node.output and node.output[0] in shared)]
        body += [_identity(renaming.tensor(source), target) for source, target in copies]
        return body or None

    def _shared_constants(self, function: onnx.FunctionProto, key: FunctionKey) -> dict[str, str]:
        """From the outputs of Constant nodes of a body to the initializers that stand for them in all calls."""
        found: dict[str, str] = {}
        for node in function.node:
            tensor = _constant(node)
            if tensor is None or node.output[0] in function.output:
                continue
            name = node.output[0]
            if (key, name) not in self.constants:
                hoisted = onnx.TensorProto()
                hoisted.CopyFrom(tensor)
                hoisted.name = self._names.tensor(f"{function.name}/{name}")
                self.constants[key, name] = hoisted
            found[name] = self.constants[key, name].name
        return found


def _fits(call: onnx.NodeProto, function: onnx.FunctionProto) -> bool:
    """Whether the call is well-formed and says nothing that its nodes couldn't carry."""
    if len(call.input) > len(function.input) or len(call.output) > len(function.output) or not any(call.output):
        return False
    given = dict(zip(function.input, call.input, strict=False))
    passed_on = zip(function.output, call.output, strict=False)
    if any(actual and formal in function.input and not given.get(formal) for formal, actual in passed_on):
        return False
    plain = not any(
        attribute.ref_attr_name or attribute.HasField("g") or attribute.graphs for attribute in call.attribute
    )
    return plain and not call.device_configurations


def _arguments(function: onnx.FunctionProto, call: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    """What the attributes of a body may refer to: the call's, else the function's defaults."""
    return {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    held = attribute.name == "value" and attribute.HasField("t") and not attribute.ref_attr_name
    tensor: onnx.TensorProto = attribute.t
    return tensor if held and len(node.output) == 1 else None


def _identity(source: str, target: str) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Identity", input=[source], output=[target])


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


class _Folding:
    """Folds calls back, inner ones first."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._open = set(range(len(calls)))
        self._by_output: dict[str, list[int]] = {}
        for number, call in enumerate(calls):
            self._by_output.setdefault(_first_output(call.body[0]), []).append(number)

    def remaining(self) -> Iterator[Call]:
        """The calls that were not folded."""
        return (self._calls[number] for number in sorted(self._open))

    def fold(self, graph: onnx.GraphProto) -> None:
        """Fold the calls in a graph, and before in the graphs inside it."""
        for node in graph.node:
            for _, inner in child_graphs(node):
                self.fold(inner)
        nodes: list[onnx.NodeProto | None] = list(graph.node)
        places = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        found = {number for name in places for number in self._by_output.get(name, ())}
        folded = False
        for number in sorted(found, reverse=True):  # a call in a body has a larger number than the body's own
            folded |= self._fold_one(number, nodes, places)
        if folded:
            kept = [node for node in nodes if node is not None]
            del graph.node[:]
            graph.node.extend(kept)

    def _fold_one(self, number: int, nodes: list[onnx.NodeProto | None], places: dict[str, int]) -> bool:
        call = self._calls[number]
        indices = [places.get(_first_output(node), -1) for node in call.body]
        for index, node in zip(indices, call.body, strict=True):
            present = nodes[index] if index >= 0 else None
            if present is None or present.SerializeToString() != node.SerializeToString():
                return False
        for index in indices:
            nodes[index] = None
        nodes[min(indices)] = call.node
        places.update((name, min(indices)) for name in call.node.output if name)
        self._open.discard(number)
        return True


def _first_output(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _keep_called(
    model: onnx.ModelProto, functions: Iterable[onnx.FunctionProto], unused: Iterable[FunctionKey]
) -> None:
    """Give a model those of the original's functions that it calls, and those that nothing called to begin with."""
    by_key = {function_key(function): function for function in functions}
    kept = _called(model, by_key) | set(unused)
    kept |= set(_reachable([node for key in unused for node in by_key[key].node], by_key))
    del model.functions[:]
    model.functions.extend(function for key, function in by_key.items() if key in kept)


def _called(model: onnx.ModelProto, functions: Mapping[FunctionKey, onnx.FunctionProto]) -> set[FunctionKey]:
    """The functions that the model's graphs call, directly or through others."""
    graphs = [model.graph, *(graph for info in model.training_info for graph in (info.initialization, info.algorithm))]
    return set(_reachable([node for graph in graphs for node in graph.node], functions))


def _reachable(
    nodes: list[onnx.NodeProto], functions: Mapping[FunctionKey, onnx.FunctionProto]
) -> Iterator[FunctionKey]:
    """The functions that nodes call, directly or through others."""
    seen: set[FunctionKey] = set()
    while nodes:
        node = nodes.pop()
        nodes.extend(inner for _, graph in child_graphs(node) for inner in graph.node)
        key = call_key(node)
        if key in functions and key not in seen:
            seen.add(key)
            yield key
            nodes.extend(functions[key].node)
