"""Calls of model-local functions: written out to be rewritten, folded back where they weren't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx import Alpha, Config, compress
from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.passes import expand_calls, find_sites, fold_calls
from lowrank_onnx.passes.callable_functions import MOST_NODES, survey_functions
from tests.passes.models import assert_same, constant, make_model, tensor, value, weight

FULL = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd", validate=False)
SIZE = 6


def function(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str] = ("a", "b"),
    outputs: Sequence[str] = ("y",),
    *,
    name: str = "Layer",
    opset: int = 17,
    overload: str = "",
    attributes: Sequence[str] = (),
    defaults: Sequence[onnx.AttributeProto] = (),
) -> onnx.FunctionProto:
    made = h.make_function(
        "pkg",
        name,
        inputs,
        outputs,
        nodes,
        [h.make_opsetid("", opset), h.make_opsetid("pkg", 1)],
        list(attributes),
        list(defaults),
    )
    made.overload = overload
    return made


def call(inputs: Sequence[str], output: str, name: str = "Layer", **attributes: Any) -> onnx.NodeProto:
    return h.make_node(name, inputs, [output], domain="pkg", name=f"call.{output}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto], output: str = "y"
) -> onnx.ModelProto:
    """A model with square weights w1 to w4, an input x and a condition c."""
    weights = {f"w{index}": weight(SIZE, SIZE, seed=index) for index in range(1, 5)}
    made = make_model(
        nodes, [value("x", ["n", SIZE]), value("c", [], T.BOOL)], [value(output, ["n", SIZE])], weights, ir_version=10
    )
    made.opset_import.append(h.make_opsetid("pkg", 1))
    made.functions.extend(functions)
    return made


def feed() -> dict[str, np.ndarray]:
    return {"x": weight(3, SIZE, seed=9), "c": np.array(True)}


LINEAR = function([h.make_node("MatMul", ["a", "b"], ["h"], name="fc"), h.make_node("Relu", ["h"], ["y"], name="act")])


def full(proto: onnx.ModelProto, exclude: Sequence[str] = ()) -> onnx.ModelProto:
    """Rewritten at full rank, checked, and with equal outputs."""
    result = compress(proto, replace(FULL, exclude=tuple(exclude)))
    assert result.status == "written", result.message
    assert result.model is not None
    onnx.checker.check_model(result.model, full_check=True)
    assert_same(proto, result.model, feed(), tolerance=1e-5)
    return result.model


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def names(proto: onnx.ModelProto) -> set[str]:
    return {stored.name for stored in proto.graph.initializer}


def test_each_call_gets_the_factors_of_its_own_weight() -> None:
    proto = model([call(["x", "w1"], "h"), call(["h", "w2"], "y")], [LINEAR])
    result = full(proto)
    assert ops(result) == ["MatMul", "MatMul", "Relu"] * 2
    assert {"w1.left", "w1.right", "w2.left", "w2.right"} <= names(result)
    assert {"w1", "w2"}.isdisjoint(names(result))
    assert not result.functions


def test_a_call_whose_weight_stays_is_folded_back_and_its_function_kept() -> None:
    unused = function([h.make_node("Neg", ["a"], ["y"])], ["a"], name="Unused")
    proto = model([call(["x", "w1"], "h"), call(["h", "w2"], "y")], [LINEAR, unused])
    result = full(proto, ["w2"])
    assert ops(result) == ["MatMul", "MatMul", "Relu", "Layer"]
    assert result.graph.node[3].SerializeToString() == proto.graph.node[1].SerializeToString()
    assert [f.SerializeToString() for f in result.functions] == [f.SerializeToString() for f in proto.functions]


def test_what_is_written_out_folds_back_to_the_same_bytes() -> None:
    inner = function(
        [h.make_node("Layer", ["a", "b"], ["h"], domain="pkg"), h.make_node("Identity", ["h"], ["y"])], name="Twice"
    )
    branch = h.make_graph([call(["x", "w3"], "t", "Twice")], "then", [], [value("t", None)])
    other = h.make_graph([call(["x", "w4"], "e", "Twice")], "else", [], [value("e", None)])
    nodes = [
        call(["x", "w1"], "h", "Twice"),
        h.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=other),
        h.make_node("Add", ["h", "i"], ["y"]),
    ]
    proto = model(nodes, [LINEAR, inner])
    expansion = expand_calls(proto)
    assert len(expansion.calls) == 6
    assert ops(expansion.skeleton) == ["MatMul", "Relu", "Identity", "If", "Add"]
    assert fold_calls(expansion.skeleton, expansion).SerializeToString() == proto.SerializeToString()
    assert_same(proto, expansion.skeleton, feed(), tolerance=0.0)


def test_nested_functions_open_only_as_far_as_something_changed() -> None:
    both = function([call(["a", "b"], "m"), call(["m", "d"], "y")], ["a", "b", "d"], name="Both")
    proto = model([call(["x", "w1", "w2"], "h", "Both"), call(["h", "w3", "w4"], "y", "Both")], [LINEAR, both])
    result = full(proto, ["w2", "w3", "w4"])
    assert ops(result) == ["MatMul", "MatMul", "Relu", "Layer", "Both"]
    assert len(result.functions) == 2
    assert full(proto).functions == []


def test_a_weight_in_the_body_is_stored_once_for_all_calls() -> None:
    body = function([constant("k", weight(SIZE, SIZE)), h.make_node("MatMul", ["a", "k"], ["y"], name="fc")], ["a"])
    proto = model([call(["x"], "h"), call(["h"], "y")], [body])
    result = full(proto)
    assert ops(result) == ["MatMul"] * 4
    assert sorted(names(result) - {"w1", "w2", "w3", "w4"}) == ["Layer/k.left", "Layer/k.right"]
    assert not result.functions
    once = full(model([call(["x"], "y")], [body]))
    assert ops(once) == ["MatMul", "MatMul"]


def test_calls_that_share_a_body_s_constant_stay_together() -> None:
    """Were one call folded back, the constant would be stored in the function and beside it."""
    nodes = [
        constant("k", weight(SIZE, SIZE)),
        h.make_node("MatMul", ["a", "k"], ["m"], name="inner"),
        h.make_node("MatMul", ["m", "b"], ["y"], name="outer"),
    ]
    proto = model([call(["x", "w1"], "h"), call(["h", "w2"], "y")], [function(nodes)])
    result = full(proto, ["w2", "*inner"])
    assert ops(result) == ["MatMul", "MatMul", "MatMul", "MatMul", "MatMul"]
    assert "Layer/k" in names(result)
    assert not result.functions


def test_attributes_are_the_call_s_else_the_default_else_the_operator_s() -> None:
    gemm = h.make_node("Gemm", ["a", "b"], ["y"], name="fc")
    for name, reference in (("alpha", "scale"), ("transB", "turned"), ("beta", "none")):
        kind = onnx.AttributeProto.INT if name == "transB" else onnx.AttributeProto.FLOAT
        gemm.attribute.add(name=name, type=kind, ref_attr_name=reference)
    body = function([gemm], attributes=["scale", "none"], defaults=[h.make_attribute("turned", 1)])
    nodes = [call(["x", "w1"], "h", scale=0.5), call(["h", "w2"], "y", scale=2.0, turned=0)]
    expanded = expand_calls(model(nodes, [body])).skeleton
    found = [{a.name: h.get_attribute_value(a) for a in node.attribute} for node in expanded.graph.node]
    assert found == [{"alpha": 0.5, "transB": 1}, {"alpha": 2.0, "transB": 0}]
    full(model(nodes, [body]))


def test_overloads_are_told_apart() -> None:
    other = function([h.make_node("MatMul", ["a", "b"], ["y"])], overload="plain")
    second = call(["h", "w2"], "y")
    second.overload = "plain"
    expanded = expand_calls(model([call(["x", "w1"], "h"), second], [LINEAR, other])).skeleton
    assert ops(expanded) == ["MatMul", "Relu", "MatMul"]


def test_inputs_and_outputs_may_be_left_out_or_passed_through() -> None:
    nodes = [
        h.make_node("Gemm", ["a", "b", "bias"], ["y"], name="fc"),
        h.make_node("Relu", ["y"], ["side"]),
    ]
    body = function(nodes, ["a", "b", "bias"], ["side", "y", "a"])
    made = h.make_node("Layer", ["x", "w1"], ["", "h", "same"], domain="pkg", name="fc")
    proto = model([made, h.make_node("Add", ["h", "same"], ["y"])], [body])
    expansion = expand_calls(proto)
    assert ops(expansion.skeleton) == ["Gemm", "Relu", "Identity", "Add"]
    assert list(expansion.skeleton.graph.node[0].input) == ["x", "w1", ""]
    onnx.checker.check_model(expansion.skeleton, full_check=True)


def test_names_of_a_body_never_meet_those_of_the_model() -> None:
    """What the body doesn't define stays undefined, whatever the model calls so."""
    body = function([h.make_node("MatMul", ["a", "w1"], ["h"]), h.make_node("MatMul", ["h", "b"], ["y"])])
    expanded = expand_calls(model([call(["x", "w2"], "h")], [body], "h")).skeleton
    assert list(expanded.graph.node[0].input) == ["x", "call.h/w1"]
    assert expanded.graph.node[0].output[0] == "call.h/h"


def test_a_site_inside_a_subgraph_of_a_body() -> None:
    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return h.make_graph(nodes, name, [], [value(name, None)])

    node = h.make_node(
        "If",
        ["p"],
        ["y"],
        name="if",
        then_branch=branch("t", [h.make_node("MatMul", ["a", "b"], ["t"], name="fc")]),
        else_branch=branch("e", [h.make_node("Identity", ["a"], ["e"])]),
    )
    body = function([node], ["a", "b", "p"])
    result = full(model([call(["x", "w1", "c"], "h"), call(["h", "w2", "c"], "y")], [body]))
    assert {"w1.left", "w2.left"} <= names(result)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            function([h.make_node("Layer", ["a", "b"], ["h"], domain="pkg"), h.make_node("MatMul", ["h", "b"], ["y"])]),
            "it calls itself, or a function that does",
        ),
        (
            function([h.make_node("MatMul", ["a", "b"], ["h"]), h.make_node("ReduceSum", ["h"], ["y"])], opset=11),
            "ReduceSum of its opset 11 isn't that of the model's opset 17",
        ),
        (
            function([h.make_node("MatMul", ["a", "b"], ["y"])], opset=2**40),
            f"MatMul of its opset {2**40} isn't that of the model's opset 17",
        ),
        (
            function([h.make_node("MatMul", ["a", "b"], ["h"]), h.make_node("Odd", ["h"], ["y"], domain="odd")]),
            "its node Odd is of domain 'odd', which the function doesn't import",
        ),
        (
            function([h.make_node("MatMul", ["a", "a"], ["y"])], ["a", "a"]),
            "its inputs and outputs aren't named properly",
        ),
        (
            function([h.make_node("MatMul", ["a", "b"], ["y"]), h.make_node("Print", ["y"], [])]),
            "its node Print has no output",
        ),
        (
            function(
                [
                    h.make_node("MatMul", ["a", "b"], ["h"]),
                    h.make_node(
                        "If",
                        ["h"],
                        ["y"],
                        then_branch=h.make_graph([], "g", [value("a")], []),
                        else_branch=h.make_graph([], "g", [], []),
                    ),
                ]
            ),
            "a graph inside it hides names of the function",
        ),
    ],
)
def test_what_is_not_written_out_has_a_reason(body: onnx.FunctionProto, problem: str) -> None:
    proto = model([call(["x", "w1"], "y")], [body])
    expansion = expand_calls(proto)
    assert expansion.skeleton is proto
    _, skipped = find_sites(proto, op_types=OP_TYPES, kept=expansion.kept)
    reason = f"inside model-local function 'pkg::Layer', which is kept as it is: {problem}"
    assert {item.reason for item in skipped if item.name.startswith("pkg::Layer")} == {reason}


@pytest.mark.parametrize("where", ["node", "attribute", "reference", "inner output", "inner value"])
def test_names_of_a_body_that_are_not_utf8_keep_it(where: str) -> None:
    odd = "AAAAAA"
    gemm = h.make_node("Gemm", ["a", "b"], ["h"], name=odd if where == "node" else "", alpha=2.0)
    if where == "attribute":
        gemm.attribute[0].name = odd
    if where == "reference":
        gemm.attribute[0].ref_attr_name = odd
    inner = value(odd if where == "inner output" else "t")
    branches = [h.make_graph([h.make_node("Identity", ["h"], [inner.name])], "g", [], [inner]) for _ in range(2)]
    if where == "inner value":
        branches[0].value_info.append(value(odd))
    choice = h.make_node("If", ["a"], ["y"], then_branch=branches[0], else_branch=branches[1])
    body = function([gemm, choice])
    assert survey_functions(model([call(["x", "w1"], "y")], [body])).callable
    broken = onnx.FunctionProto.FromString(body.SerializeToString().replace(odd.encode(), b"\xff\xfeAAAA"))
    survey = survey_functions(model([call(["x", "w1"], "y")], [broken]))
    assert not survey.callable
    assert set(survey.kept.values()) == {"it has names that aren't valid UTF-8"}


def test_an_operator_with_one_definition_may_be_of_another_opset() -> None:
    body = function([h.make_node("MatMul", ["a", "b"], ["y"])], opset=15)
    assert ops(expand_calls(model([call(["x", "w1"], "y")], [body])).skeleton) == ["MatMul"]


def test_functions_that_multiply_are_not_written_out() -> None:
    """Each calls the next twice: 2^40 nodes."""
    chain = [
        function([call(["a", "b"], "m", f"F{i + 1}"), call(["m", "b"], "y", f"F{i + 1}")], name=f"F{i}")
        for i in range(40)
    ]
    last = function([h.make_node("MatMul", ["a", "b"], ["y"])], name="F40")
    expansion = expand_calls(model([call(["x", "w1"], "y", "F0")], [*chain, last]))
    assert not expansion.calls
    assert set(expansion.kept.values()) == {
        f"written out, the calls of functions would take more than {MOST_NODES} nodes"
    }


@pytest.mark.parametrize(
    "made",
    [
        h.make_node("Layer", ["x", "w1", "w2"], ["y"], domain="pkg"),
        h.make_node("Layer", ["x", "w1"], ["y", "z"], domain="pkg"),
        h.make_node("Layer", ["x", "w1"], [""], domain="pkg"),
        h.make_node("Layer", ["x", "w1"], ["y"], domain="pkg", body=h.make_graph([], "g", [], [])),
    ],
)
def test_a_call_that_does_not_fit_its_function_stays(made: onnx.NodeProto) -> None:
    expansion = expand_calls(model([made], [LINEAR]))
    assert not expansion.calls
    assert ops(expansion.skeleton) == ["Layer"]


def test_deep_calls_do_not_nest_deeper_than_a_model_may() -> None:
    def inside(depth: int, node: onnx.NodeProto) -> onnx.NodeProto:
        for level in range(depth):
            graph = h.make_graph([node], "g", [], [value(node.output[0], None)])
            node = h.make_node("Loop", ["", "p"], [f"o{level}"], body=graph)
        return node

    deep = function([inside(20, h.make_node("MatMul", ["a", "b"], ["h"]))], ["a", "b", "p"], ["o19"])
    outer = inside(15, call(["x", "w1", "c"], "y"))
    expansion = expand_calls(model([outer], [deep], "o14"))
    assert not expansion.calls
    find_sites(expansion.skeleton, op_types=OP_TYPES)
    assert expand_calls(model([call(["x", "w1", "c"], "y")], [deep])).calls


def test_moments_and_effects_are_measured_at_each_call() -> None:
    proto = model([call(["x", "w1"], "h"), call(["h", "w2"], "y")], [LINEAR])
    feeds = [{"x": weight(8, SIZE, seed=index), "c": np.array(True)} for index in range(4)]
    result = compress(proto, replace(FULL, budget=Alpha(0.3), allow_larger=False, validate=True), feeds=feeds)
    assert [site.name for site in result.sites] == ["call.h/fc", "call.y/fc"]
    assert all(site.input_error is not None and site.macs_before for site in result.sites)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_is_rewritten_the_outputs_are_the_same_and_the_rest_is_untouched(data: st.DataObject) -> None:
    """Random layers of nested calls over weights that are passed in, turned or stored in the body."""
    stored = function(
        [constant("k", weight(SIZE, SIZE, seed=7)), h.make_node("MatMul", ["a", "k"], ["y"])], ["a"], name="Stored"
    )
    turned = function([h.make_node("Transpose", ["b"], ["t"]), h.make_node("MatMul", ["a", "t"], ["y"])], name="Turned")
    pair = function([call(["a", "b"], "m"), call(["m"], "n", "Stored"), call(["n", "b"], "y", "Turned")], name="Pair")
    nodes, last = [], "x"
    for step in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["Layer", "Stored", "Turned", "Pair", "MatMul"]))
        inputs = [last] if kind == "Stored" else [last, f"w{data.draw(st.integers(1, 4))}"]
        last = f"h{step}"
        nodes.append(h.make_node("MatMul", inputs, [last]) if kind == "MatMul" else call(inputs, last, kind))
    proto = model(nodes, [LINEAR, stored, turned, pair], last)
    expansion = expand_calls(proto)
    assert fold_calls(expansion.skeleton, expansion).SerializeToString() == proto.SerializeToString()
    exclude = data.draw(st.sets(st.sampled_from(["w1", "w2", "w3", "w4", "Stored/k", "*/k"])))
    result = compress(proto, replace(FULL, exclude=tuple(exclude)))
    if result.model is None:
        return
    onnx.checker.check_model(result.model, full_check=True)
    assert_same(proto, result.model, feed(), tolerance=1e-4)
    original = {node.SerializeToString() for node in proto.graph.node}
    assert all(
        node.SerializeToString() in original
        for node in result.model.graph.node
        if node.domain == "pkg" and "/" not in node.name
    )
    assert (
        tensor("w1", weight(SIZE, SIZE, seed=1)).SerializeToString()
        in {kept.SerializeToString() for kept in result.model.graph.initializer}
        or "w1" not in exclude
    )
