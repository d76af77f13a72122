from __future__ import annotations

import cProfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.passes import rewrite
from lowrank_onnx.types import Array, Rearrangement, Site
from tests.passes.models import (
    assert_same,
    choose,
    compress,
    constant,
    make_model,
    placeholder,
    run_ort,
    sites_of,
    strip,
    tensor,
    value,
    weight,
)
from tests.passes.untouched import changes


def perceptron() -> onnx.ModelProto:
    """Two layers with a ReLU between them."""
    return make_model(
        [
            h.make_node("MatMul", ["x", "w1"], ["h"], name="fc1", doc_string="first"),
            h.make_node("Relu", ["h"], ["r"], name="relu"),
            h.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="fc2", transB=1),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 5])],
        {"w1": weight(8, 6), "w2": weight(5, 6, seed=1), "b2": weight(5, seed=2)},
        value_info=[value("h", ["n", 6]), value("w1", [8, 6])],
    )


def test_what_a_rewrite_changes_is_all_that_it_changes() -> None:
    model = perceptron()
    outcome = compress(model)
    assert changes(outcome.skeleton, outcome.result.skeleton) == {
        "node": (["h", "y"], ["h.mid", "h", "y.mid", "y"]),
        "initializer": (["w1", "w2"], ["w1.left", "w1.right", "w2.left", "w2.right"]),
        "value_info": (["w1"], ["h.mid", "y.mid"]),
    }
    assert_same(model, outcome.model, {"x": weight(3, 8, seed=3)}, tolerance=1e-5)


def test_the_original_is_not_changed_and_nothing_chosen_changes_nothing() -> None:
    skeleton, _ = strip(perceptron())
    before = skeleton.SerializeToString(deterministic=True)
    chosen = [choose(site, 2) for site in sites_of(skeleton)]
    rewrite(skeleton, chosen, tool_version="1", placeholder=placeholder)
    assert skeleton.SerializeToString(deterministic=True) == before
    result = rewrite(skeleton, [], tool_version="1", placeholder=placeholder)
    assert result.new_tensors == ()
    assert result.skeleton.SerializeToString(deterministic=True) == before


def test_the_same_choices_give_the_same_bytes_in_any_order() -> None:
    skeleton, _ = strip(perceptron())
    chosen = [choose(site, 2) for site in sites_of(skeleton)]
    results = [rewrite(skeleton, order, tool_version="1", placeholder=placeholder) for order in (chosen, chosen[::-1])]
    assert results[0].new_tensors == results[1].new_tensors
    first, second = (result.skeleton.SerializeToString(deterministic=True) for result in results)
    assert first == second


def test_nodes_say_what_was_done() -> None:
    model = perceptron()
    model.graph.node[0].metadata_props.add(key="origin", value="line 7")
    first, last = compress(model, lambda site: 3).model.graph.node[:2]
    said = {
        "lowrank.tool": "lowrank-onnx",
        "lowrank.version": "1.2.3",
        "lowrank.method": "svd",
        "lowrank.form": "pair",
        "lowrank.rank": "3",
        "lowrank.relative_error": "0.25",
        "lowrank.site": "fc1",
        "lowrank.weight": "w1",
    }
    assert {p.key: p.value for p in first.metadata_props} == said
    assert [(p.key, p.value) for p in last.metadata_props] == [("origin", "line 7"), *said.items()]
    assert (first.name, last.name) == ("fc1.left", "fc1")
    assert (first.doc_string, last.doc_string) == ("", "first")
    assert (list(first.output), list(last.output)) == (["h.mid"], ["h"])


def test_an_unnamed_node_is_named_after_its_output() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"])], [value("x", [2, 4])], [value("y", [2, 4])], {"w": weight(4, 4)}
    )
    first, last = compress(model).model.graph.node
    assert (first.name, last.name) == ("y.left", "")
    assert not last.HasField("doc_string")


def test_names_are_unique_over_all_scopes_and_functions() -> None:
    inner = h.make_graph(
        [h.make_node("Neg", ["x"], ["w.right"], name="fc.left_1")], "inner", [], [value("w.right", None)]
    )
    model = make_model(
        [
            h.make_node("If", ["c"], ["w.left"], name="fc.left", then_branch=inner, else_branch=inner),
            h.make_node("MatMul", ["w.left", "w"], ["y"], name="fc"),
        ],
        [value("c", [], T.BOOL), value("x", [2, 4])],
        [value("y", [2, 4])],
        {"w": weight(4, 4), "w.left_1": weight(1)},
        value_info=[value("w.left_2", None)],
    )
    function = h.make_function(
        "pkg", "F", ["w.left_3"], ["y.mid"], [h.make_node("Neg", ["w.left_3"], ["y.mid"])], [h.make_opsetid("", 17)]
    )
    model.functions.append(function)
    outcome = compress(model)
    assert [new.name for new in outcome.result.new_tensors] == ["w.left_4", "w.right_1"]
    assert len({new.key for new in outcome.result.new_tensors}) == 2
    first, last = list(outcome.model.graph.node)[1:]
    assert (first.name, first.output[0], last.name) == ("fc.left_2", "y.mid_1", "fc")


def test_a_shared_weight_is_stored_once_and_leaves_with_its_last_user() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["h"], name="a"), h.make_node("MatMul", ["h", "w"], ["y"], name="b")],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        {"w": weight(4, 4)},
    )
    outcome = compress(model, lambda site: 4)
    assert [new.name for new in outcome.result.new_tensors] == ["w.left", "w.right"]
    assert [t.name for t in outcome.model.graph.initializer] == ["w.left", "w.right"]
    assert_same(model, outcome.model, {"x": weight(2, 4, seed=1)}, tolerance=1e-5)
    skeleton, _ = strip(model)
    only = rewrite(skeleton, [choose(sites_of(skeleton)[1], 2)], tool_version="1", placeholder=placeholder)
    assert [t.name for t in only.skeleton.graph.initializer] == ["w", "w.left", "w.right"]
    assert [list(node.input) for node in only.skeleton.graph.node] == [
        ["x", "w"],
        ["h", "w.left"],
        ["y.mid", "w.right"],
    ]


def if_model(*, weight_inside: bool) -> onnx.ModelProto:
    """An If whose branches multiply by one outer weight, or each by an inner one; also used outside."""

    def branch(name: str) -> onnx.GraphProto:
        stored = [tensor("v", weight(4, 4, seed=7))] if weight_inside else []
        nodes = [
            h.make_node("MatMul", ["x", "v" if weight_inside else "w"], [f"{name}.h"], name=name),
            h.make_node("Neg" if name == "no" else "Relu", [f"{name}.h"], [f"{name}.y"]),
        ]
        return h.make_graph(nodes, name, [], [value(f"{name}.y", None)], stored)

    return make_model(
        [
            h.make_node("If", ["c"], ["z"], name="if", then_branch=branch("yes"), else_branch=branch("no")),
            h.make_node("MatMul", ["z", "w"], ["y"], name="after"),
        ],
        [value("c", [], T.BOOL), value("x", [2, 4])],
        [value("y", [2, 4])],
        {"w": weight(4, 4)},
    )


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("weight_inside", [True, False])
def test_branches_of_an_if(condition: bool, weight_inside: bool) -> None:
    model = if_model(weight_inside=weight_inside)
    outcome = compress(model)
    assert len(outcome.sites) == 3
    feed = {"c": np.array(condition), "x": weight(2, 4, seed=1)}
    assert_same(model, outcome.model, feed, tolerance=1e-5)
    graph = outcome.model.graph
    assert [t.name for t in graph.initializer] == ["w.left", "w.right"]
    inner = [[t.name for t in a.g.initializer] for a in graph.node[0].attribute]
    expected = [["v.left", "v.right"], ["v.left_1", "v.right_1"]] if weight_inside else [[], []]
    assert inner == expected
    changed = changes(outcome.skeleton, outcome.result.skeleton)
    assert sorted(changed["node"][0]) == ["no.h", "y", "yes.h"]
    assert sorted(changed["value_info"][1]) == ["no.h.mid", "y.mid", "yes.h.mid"]


def test_a_loop_body_with_a_constant_node() -> None:
    body = h.make_graph(
        [
            constant("w", weight(4, 4) / 4),
            h.make_node("MatMul", ["s", "w"], ["t"], name="fc"),
            h.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [value("i", [], T.INT64), value("go", [], T.BOOL), value("s", [2, 4])],
        [value("on", [], T.BOOL), value("t", [2, 4])],
    )
    model = make_model(
        [h.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)],
        [value("n", [], T.INT64), value("x", [2, 4])],
        [value("y", [2, 4])],
    )
    outcome = compress(model)
    (new, _) = outcome.result.new_tensors
    assert new.scope == ((0, "body"),)
    assert [node.op_type for node in outcome.model.graph.node[0].attribute[0].g.node] == [
        "MatMul",
        "MatMul",
        "Identity",
    ]
    assert_same(model, outcome.model, {"n": np.array(5), "x": weight(2, 4, seed=1)}, tolerance=1e-5)


def test_a_constant_of_an_outer_graph_leaves_when_a_branch_no_longer_needs_it() -> None:
    inner = h.make_graph([h.make_node("MatMul", ["x", "w"], ["t"], name="fc")], "b", [], [value("t", None)])
    other = h.make_graph([h.make_node("Neg", ["x"], ["e"])], "b", [], [value("e", None)])
    model = make_model(
        [constant("w", weight(4, 4)), h.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)],
        [value("c", [], T.BOOL), value("x", [2, 4])],
        [value("y", [2, 4])],
    )
    outcome = compress(model)
    assert changes(outcome.skeleton, outcome.result.skeleton) == {
        "node": (["w", "t"], ["t.mid", "t"]),
        "initializer": ([], ["w.left", "w.right"]),
        "value_info": ([], ["t.mid"]),
    }
    assert outcome.result.new_tensors[0].scope == ()
    assert_same(model, outcome.model, {"c": np.array(True), "x": weight(2, 4, seed=1)}, tolerance=1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_below_ir_version_4_initializers_are_inputs(inside: bool) -> None:
    nodes = [h.make_node("MatMul", ["x", "w"], ["t" if inside else "y"], name="fc")]
    branch = h.make_graph([constant("w", weight(4, 4)), *nodes], "b", [], [value("t", None)])
    model = make_model(
        [h.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)] if inside else nodes,
        [value("c", [], T.BOOL), value("x", [2, 4])],
        [value("y", [2, 4])],
        {} if inside else {"w": weight(4, 4)},
        opset=11,
        ir_version=3,
    )
    if not inside:
        model.graph.input.insert(1, value("w", [4, 4]))
    outcome = compress(model)
    names = [entry.name for entry in outcome.model.graph.input]
    added = ["w.left", "w.right", "w.left_1", "w.right_1"] if inside else ["w.left", "w.right"]
    assert names == ["c", "x", *added]
    assert [t.name for t in outcome.model.graph.initializer] == added
    assert_same(model, outcome.model, {"c": np.array(True), "x": weight(2, 4, seed=1)}, tolerance=1e-5)


def test_annotations_of_a_removed_weight_leave_with_it() -> None:
    model = perceptron()
    for name in ("h", "w1", "b2"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b2")
    outcome = compress(model)
    assert changes(outcome.skeleton, outcome.result.skeleton)["quantization_annotation"] == (["w1"], [])


def test_a_second_rewrite_of_the_result_is_an_honest_compression() -> None:
    model = perceptron()
    once = compress(model, lambda site: 4).model
    again = compress(once, lambda site: 2)
    assert [site.name for site in again.sites] == ["fc1.left", "fc1", "fc2.left", "fc2"]
    props = [p.key for p in again.model.graph.node[1].metadata_props]
    assert len(props) == len(set(props)) == 8
    x = weight(3, 8, seed=3)
    assert run_ort(again.model, {"x": x})[0].shape == (3, 5)
    assert_same(once, compress(once).model, {"x": x}, tolerance=1e-5)


def test_choices_that_can_not_be_written_are_refused() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["h"], name="a"), h.make_node("MatMul", ["h", "w"], ["y"], name="b")],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        {"w": weight(4, 4)},
    )
    a, b = sites_of(model)

    def refused(*choices: tuple[Site, int]) -> str:
        with pytest.raises(ValueError, match=r"\w") as caught:
            rewrite(model, [choose(*choice) for choice in choices], tool_version="1", placeholder=placeholder)
        return str(caught.value)

    assert refused((a, 2), (b, 3)) == "weight 'w' is shared and would need pair at rank 2 and pair at rank 3"
    assert refused((a, 2), (a, 2)) == "site 'a' is chosen twice"
    assert refused((a, 0)) == "site 'a': rank 0, expected 1 to 4"
    assert refused((a, 5)) == "site 'a': rank 5, expected 1 to 4"
    elsewhere = [
        replace(a, node_index=1),
        replace(a, node_index=9),
        replace(a, node_index=-2),
        replace(a, scope=((0, "body"),)),
        replace(a, op_type="Gemm"),
    ]
    for site in elsewhere:
        assert refused((site, 2)) == "site 'a' isn't in this model"


def test_arrangements_lead_from_factors_to_stored_tensors() -> None:
    model = make_model(
        [h.make_node("Conv", ["x", "w"], ["y"], group=2)],
        [value("x", [1, 4, 5, 5])],
        [value("y", [1, 6, 3, 3])],
        {"w": weight(6, 2, 3, 3)},
    )
    left, right = compress(model, lambda site: 2).result.new_tensors
    assert left.arrangement == Rearrangement((2, 18, 2), (0, 2, 1), (4, 2, 3, 3))
    assert right.arrangement == Rearrangement((2, 2, 3), (0, 2, 1), (6, 2, 1, 1))
    assert left.weight == right.weight


def chain(length: int) -> onnx.ModelProto:
    """A chain of MatMuls, every tenth of them inside the branches of an If."""
    nodes: list[onnx.NodeProto] = []
    for i in range(length):
        node = h.make_node("MatMul", [f"h{i}", f"w{i % 97}"], [f"h{i + 1}"])
        if i % 10 == 9:
            node.output[0] = "t"
            branch = h.make_graph([node], "b", [], [value("t", None)])
            node = h.make_node("If", ["c"], [f"h{i + 1}"], then_branch=branch, else_branch=branch)
        nodes.append(node)
    stored: dict[str, Array] = {f"w{i}": weight(4, 4) for i in range(97)}
    return make_model(nodes, [value("c", [], T.BOOL), value("h0", [2, 4])], [value(f"h{length}", [2, 4])], stored)


def test_a_graph_of_ten_thousand_nodes() -> None:
    model = chain(10_000)
    skeleton, _ = strip(model)
    sites = sites_of(skeleton)
    assert len(sites) == 11_000
    assert sites == tuple(sorted(sites, key=lambda site: (len(site.scope), site.scope, site.node_index)))
    result = rewrite(skeleton, [choose(site, 2) for site in sites], tool_version="1", placeholder=placeholder)
    assert len(result.new_tensors) == 2 * 97
    assert len(result.skeleton.graph.node) == 9_000 * 2 + 1_000


def test_the_work_grows_with_the_graph_and_not_faster() -> None:
    def calls(length: int) -> int:
        skeleton, _ = strip(chain(length))
        profile = cProfile.Profile()
        profile.enable()
        chosen = [choose(site, 2) for site in sites_of(skeleton)]
        rewrite(skeleton, chosen, tool_version="1", placeholder=placeholder)
        profile.disable()
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(1000) < 4.4 * calls(250)
