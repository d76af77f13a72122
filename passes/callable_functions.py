"""Which model-local functions can be written out at their calls, and why the others can't."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from lowrank_onnx.passes.graph_view import child_graphs, default_domain
from lowrank_onnx.passes.rules import RULE_OF

FunctionKey: TypeAlias = tuple[str, str, str]
"""Domain ('' for the default one), name and overload."""

MOST_NODES = 200_000
"""Written out, all calls may take so many nodes together: functions that call one another twice grow exponentially."""

_FIRST_IR_VERSION = 8
_LARGEST_VERSION = 2**31 - 1  # what onnx can look up


@dataclass(frozen=True, slots=True)
class Callable:
    """A function that can be written out.

    Attributes
    ----------
    function : its definition.
    calls : how often it would be written out in all.
    nesting : how many graphs deep its nodes lie at most, those of the functions that it calls included.
    """

    function: onnx.FunctionProto
    calls: int
    nesting: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The functions to write out, and for others that hold such nodes the reason why they are kept."""

    callable: Mapping[FunctionKey, Callable]
    kept: Mapping[FunctionKey, str]


def function_key(function: onnx.FunctionProto) -> FunctionKey:
    """What a call of the function must name."""
    return default_domain(function.domain), function.name, function.overload


def call_key(node: onnx.NodeProto) -> FunctionKey:
    """The function that a node would call."""
    return default_domain(node.domain), node.op_type, node.overload


def survey_functions(skeleton: onnx.ModelProto) -> Survey:
    """Judge all functions of a model that hold, or call what holds, a node of an operator with a rule."""
    functions = {function_key(function): function for function in skeleton.functions}
    if not functions:
        return Survey({}, {})
    order = _callees_first(functions)
    holding = _holding_sites(functions, order)
    kept = dict.fromkeys(functions.keys() - set(order), "it calls itself, or a function that does")
    doubled = Counter(function_key(function) for function in skeleton.functions)
    for key in order:
        if key in holding:
            problem = "it is defined twice" if doubled[key] > 1 else _problem(functions[key], skeleton)
            if problem is not None:
                kept[key] = problem
    chosen = [key for key in order if key in holding and key not in kept]
    counts = _count_calls(skeleton, functions, chosen)
    total = sum(counts[key] * len(functions[key].node) for key in chosen)
    if total > MOST_NODES:
        reason = f"written out, the calls of functions would take more than {MOST_NODES} nodes"
        return Survey({}, {**kept, **dict.fromkeys(chosen, reason)})
    depths: dict[FunctionKey, int] = {}
    for key in chosen:
        depths[key] = _nesting(functions[key], depths)
    return Survey({key: Callable(functions[key], counts[key], depths[key]) for key in chosen if counts[key]}, kept)


def _walk(nodes: Iterator[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, int]]:
    """All nodes, those in graphs inside them too, each with how many graphs deep it lies."""
    pending = [(node, 0) for node in nodes]
    while pending:
        node, depth = pending.pop()
        yield node, depth
        pending.extend((inner, depth + 1) for _, graph in child_graphs(node) for inner in graph.node)


def _callees_first(functions: Mapping[FunctionKey, onnx.FunctionProto]) -> list[FunctionKey]:
    """The functions, each after all that it calls; those that call themselves, or what does, are missing."""
    callers: dict[FunctionKey, list[FunctionKey]] = {}
    waiting: dict[FunctionKey, int] = {}
    for key, function in functions.items():
        callees = {call_key(node) for node, _ in _walk(iter(function.node))} & functions.keys()
        waiting[key] = len(callees)
        for callee in callees:
            callers.setdefault(callee, []).append(key)
    order = [key for key in functions if not waiting[key]]
    for key in order:  # grows while it is walked
        for caller in callers.get(key, ()):
            waiting[caller] -= 1
            if not waiting[caller]:
                order.append(caller)
    return order


def _holding_sites(functions: Mapping[FunctionKey, onnx.FunctionProto], order: list[FunctionKey]) -> set[FunctionKey]:
    holding: set[FunctionKey] = set()
    for key in order:
        if any(call_key(node) in holding or _has_rule(node) for node, _ in _walk(iter(functions[key].node))):
            holding.add(key)
    return holding


def _has_rule(node: onnx.NodeProto) -> bool:
    rule = RULE_OF.get(node.op_type)
    return rule is not None and rule.domain == default_domain(node.domain)


def _count_calls(
    skeleton: onnx.ModelProto, functions: Mapping[FunctionKey, onnx.FunctionProto], chosen: list[FunctionKey]
) -> Counter[FunctionKey]:
    """How often each function would be written out: a call in a body counts as often as the body."""
    counts = Counter(call_key(node) for node, _ in _walk(iter(skeleton.graph.node)))
    for key in reversed(chosen):
        for node, _ in _walk(iter(functions[key].node)):
            counts[call_key(node)] += counts[key]
    return counts


def _nesting(function: onnx.FunctionProto, depths: Mapping[FunctionKey, int]) -> int:
    return max((depth + depths.get(call_key(node), 0) for node, depth in _walk(iter(function.node))), default=0)


def _problem(function: onnx.FunctionProto, skeleton: onnx.ModelProto) -> str | None:
    """Why a function can't be written out, or None."""
    if skeleton.ir_version < _FIRST_IR_VERSION:
        return f"the model's IR version {skeleton.ir_version} has no functions"
    if len(set(function.input)) != len(function.input) or "" in function.input or "" in function.output:
        return "its inputs and outputs aren't named properly"
    outside = {*function.input, *(name for node in function.node for name in node.output)}
    for node, depth in _walk(iter(function.node)):
        if not all(isinstance(name, str) for name in _names(node)):
            return "it has names that aren't valid UTF-8"
        if not any(node.output):
            return f"its node {node.op_type} has no output"
        inner = [name for _, graph in child_graphs(node) for name in _defined(graph)]
        if outside.intersection(inner) or (depth and outside.intersection(node.output)):
            return "a graph inside it hides names of the function"
    return _version_problem(function, skeleton)


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """All names of a node and of the graphs right inside it; what isn't UTF-8 comes as bytes."""
    yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
    for attribute in node.attribute:
        yield from (attribute.name, attribute.ref_attr_name)
    for _, graph in child_graphs(node):
        yield from _defined(graph)
        yield from (value.name for values in (graph.output, graph.value_info) for value in values)
        for annotation in graph.quantization_annotation:
            yield annotation.tensor_name
            yield from (entry.value for entry in annotation.quant_parameter_tensor_names)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)


def _version_problem(function: onnx.FunctionProto, skeleton: onnx.ModelProto) -> str | None:
    """An operator of the body means the same in the model if both import it in versions with one definition."""
    imported = {default_domain(entry.domain): entry.version for entry in skeleton.opset_import}
    own = {default_domain(entry.domain): entry.version for entry in function.opset_import}
    for node, _ in _walk(iter(function.node)):
        domain = default_domain(node.domain)
        if domain not in own or domain not in imported:
            where = "the function" if domain not in own else "the model"
            return f"its node {node.op_type} is of domain '{domain}', which {where} doesn't import"
        versions = own[domain], imported[domain]
        if versions[0] != versions[1] and _definition(node, versions[0]) != _definition(node, versions[1]):
            return f"{node.op_type} of its opset {versions[0]} isn't that of the model's opset {versions[1]}"
    return None


def _definition(node: onnx.NodeProto, version: int) -> int:
    """The version in which an operator got the definition that it has in `version`; that itself where onnx has none."""
    if not 0 < version <= _LARGEST_VERSION:
        return version
    try:
        return int(onnx.defs.get_schema(node.op_type, version, default_domain(node.domain)).since_version)
    except onnx.defs.SchemaError:
        return version
