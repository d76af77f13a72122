from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.forms import TIED
from lowrank_onnx.passes import find_sites
from lowrank_onnx.passes.rules import RULE_OF
from lowrank_onnx.types import Site
from tests.passes.models import constant, make_model, reason_of, reasons_of, sites_of, value, weight


def branch(*nodes: onnx.NodeProto, output: str, weights: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    return h.make_graph(list(nodes), "branch", [], [value(output, None)], initializers)


def test_sites_have_unique_readable_names() -> None:
    names = ["fc", "fc", "", "fc#1", "bad\n\x1b[31m", "fc", "fc#5"]
    nodes = [h.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=name) for i, name in enumerate(names)]
    weights = {f"w{i}": weight(3, 3) for i in range(len(names))}
    sites = sites_of(make_model(nodes, [value("h0", [2, 3])], [value("h7", [2, 3])], weights))
    assert [site.name for site in sites] == ["fc", "fc#1", "h3", "fc#1#3", "bad\n\x1b[31m", "fc#5", "fc#5#6"]
    assert [site.node_index for site in sites] == [0, 1, 2, 3, 4, 5, 6]


def test_nodes_of_equal_paths_and_positions_are_told_apart() -> None:
    inner = branch(h.make_node("MatMul", ["x", "w"], ["t"], name="fc"), output="t", weights={"w": weight(3, 3)})
    nodes = [h.make_node("If", ["c"], [f"y{i}"], name="if", then_branch=inner) for i in range(4)]
    model = make_model(nodes, [value("c", [], T.BOOL), value("x", [2, 3])], [value("y3", None)])
    names = [site.name.removeprefix("if/then_branch/") for site in sites_of(model)]
    assert names == ["fc", "fc#0", "fc#0.2", "fc#0.3"]


def test_subgraphs_are_walked_and_prefix_the_name() -> None:
    inner = branch(h.make_node("MatMul", ["x", "w"], ["t"], name="fc"), output="t", weights={"w": weight(3, 3)})
    other = branch(constant("w2", weight(3, 3)), h.make_node("MatMul", ["x", "w2"], ["e"]), output="e")
    nested = branch(h.make_node("If", ["c"], ["n"], then_branch=inner, else_branch=other), output="n")
    model = make_model(
        [h.make_node("If", ["c"], ["y"], name="If_0", then_branch=nested, else_branch=other)],
        [value("c", [], T.BOOL), value("x", [2, 3])],
        [value("y", None)],
    )
    found = {site.name: site for site in sites_of(model)}
    assert list(found) == [
        "If_0/else_branch/e",
        "If_0/then_branch/n/else_branch/e",
        "If_0/then_branch/n/then_branch/fc",
    ]
    site = found["If_0/then_branch/n/then_branch/fc"]
    assert site.scope == site.weight.scope == ((0, "then_branch"), (0, "then_branch"))


def test_an_inner_initializer_hides_an_outer_one() -> None:
    inner = branch(h.make_node("MatMul", ["x", "w"], ["t"]), output="t", weights={"w": weight(3, 3)})
    outer = branch(h.make_node("MatMul", ["x", "w"], ["e"]), output="e")
    model = make_model(
        [h.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=outer)],
        [value("c", [], T.BOOL), value("x", [2, 3])],
        [value("y", None)],
        {"w": weight(3, 5)},
    )
    shapes = {site.name: (site.weight.scope, site.weight.shape) for site in sites_of(model)}
    assert shapes == {"if/then_branch/t": (((0, "then_branch"),), (3, 3)), "if/else_branch/e": ((), (3, 5))}


def test_operators_that_are_not_selected_are_listed() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["h"], name="fc"), h.make_node("Gemm", ["h", "v"], ["y"], name="head")],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        {"w": weight(3, 3), "v": weight(3, 4)},
    )
    sites, skipped = find_sites(model, op_types=("Gemm",))
    assert [site.name for site in sites] == ["head"]
    assert [(s.name, s.op_type, s.reason, s.parameters) for s in skipped] == [
        ("fc", "MatMul", "operator not selected (op_types: Gemm)", 9)
    ]


def test_the_default_domain_has_two_names_and_no_others() -> None:
    model = make_model(
        [
            h.make_node("MatMul", ["x", "w"], ["h"], name="fc", domain="ai.onnx"),
            h.make_node("MatMul", ["h", "w"], ["y"], name="other", domain="com.acme"),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        {"w": weight(3, 3)},
    )
    assert reasons_of(model) == {
        "fc": "weight 'w' is also used by 'other' (MatMul), which is not rewritten",
        "other": "MatMul of domain 'com.acme' isn't the standard operator",
    }
    model.graph.node[1].input[1] = "v"
    assert [site.name for site in sites_of(model)] == ["fc"]


def shared(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Nodes around one square weight, w."""
    inputs = [value("x", [3, 3]), value("i", [2], T.INT64), value("k", [1, 3, 8])]
    return make_model(nodes, inputs, [value(name, None) for name in outputs], {"w": weight(3, 3)})


FC = h.make_node("MatMul", ["x", "w"], ["y"], name="fc")


def test_sites_that_share_a_weight_are_all_found() -> None:
    sites = sites_of(shared(FC, h.make_node("Gemm", ["y", "w"], ["z"], name="head")))
    assert [site.name for site in sites] == ["fc", "head"]
    assert sites[0].weight == sites[1].weight
    assert sites[0].to_matrices == sites[1].to_matrices


@pytest.mark.parametrize(
    ("other", "mirrored"),
    [
        (h.make_node("Gather", ["w", "i"], ["z"], name="other"), False),
        (h.make_node("Gemm", ["x", "w"], ["z"], name="other", transB=1), True),
        (h.make_node("MatMul", ["w", "x"], ["z"], name="other"), True),
    ],
)
def test_a_weight_that_is_read_in_another_layout_is_tied(other: onnx.NodeProto, mirrored: bool) -> None:
    first, second = sites_of(shared(FC, other))
    assert (first.name, first.mirrored, first.forms) == ("fc", False, (TIED,))
    assert (second.name, second.mirrored, second.forms) == ("other", mirrored, (TIED,))
    assert (first.weight, first.to_matrices) == (second.weight, second.to_matrices)


def test_equal_matrices_that_are_stored_differently_are_tied() -> None:
    """Both sites multiply by w', but one needs the factors as they are and the other transposed."""
    model = shared(
        h.make_node("Gemm", ["x", "w"], ["a"], transB=1, name="a"), h.make_node("MatMul", ["w", "x"], ["b"], name="b")
    )
    assert [(site.forms, site.mirrored) for site in sites_of(model)] == [((TIED,), False)] * 2


def test_a_weight_that_is_also_read_through_a_transpose_is_tied() -> None:
    turned = h.make_node("Transpose", ["w"], ["wt"], perm=[1, 0])
    model = shared(FC, turned, h.make_node("MatMul", ["x", "wt"], ["z"], name="dec"))
    assert [(site.name, site.mirrored) for site in sites_of(model)] == [("fc", False), ("dec", True)]


def test_a_weight_that_is_a_graph_output_is_left_alone() -> None:
    assert reason_of(shared(FC, outputs=("y", "w"))) == "weight 'w' is also a graph output"
    through = shared(FC, h.make_node("Identity", ["w"], ["copy"]), outputs=("y", "copy"))
    assert reason_of(through) == "weight 'w' is also a graph output"


def test_other_uses_are_seen_through_identities_and_subgraphs() -> None:
    copy = h.make_node("Identity", ["w"], ["copy"], name="tie")
    assert len(sites_of(shared(FC, copy, h.make_node("MatMul", ["x", "copy"], ["z"])))) == 2
    use = h.make_node("Neg", ["copy"], ["z"], name="neg")
    assert reason_of(shared(FC, copy, use)) == "weight 'w' is also used by 'neg' (Neg), which is not rewritten"
    assert reason_of(shared(FC, copy)) == "weight 'w' is also used by 'tie' (Identity), which is not rewritten"
    neg = branch(h.make_node("Neg", ["w"], ["t"], name="neg"), output="t")
    model = shared(FC, h.make_node("If", ["c"], ["z"], name="if", then_branch=neg, else_branch=neg))
    assert reasons_of(model)["fc"] == ("weight 'w' is also used by 'if/else_branch/neg' (Neg), which is not rewritten")


def test_nodes_of_local_functions_are_listed() -> None:
    function = h.make_function(
        "pkg",
        "Block",
        ["x", "w"],
        ["y"],
        [
            h.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
            h.make_node(
                "If",
                ["c"],
                ["z"],
                then_branch=branch(h.make_node("Gemm", ["x", "w"], ["t"]), output="t"),
                else_branch=branch(output="e"),
            ),
        ],
        [h.make_opsetid("", 17)],
    )
    model = make_model(
        [h.make_node("Block", ["x", "w"], ["y"], domain="pkg", name="call")],
        [value("x", [2, 3])],
        [value("y", None)],
        {"w": weight(3, 3)},
    )
    model.functions.append(function)
    inside = "inside model-local function 'pkg::Block', which is kept as it is"
    assert reasons_of(model) == {
        "call": "weight is passed to a model-local function",
        "pkg::Block/fc": inside,
        "pkg::Block/t": inside,
    }


def test_a_local_function_may_take_the_place_of_an_operator() -> None:
    model = shared(FC)
    model.functions.append(h.make_function("", "MatMul", ["x", "w"], ["y"], [], [h.make_opsetid("", 17)]))
    assert reason_of(model) == "a model-local function takes this operator's place"
    model = shared(FC)
    model.graph.node[0].overload = "fast"
    assert reason_of(model) == "a model-local function takes this operator's place"


def test_sharded_nodes_are_left_alone() -> None:
    model = shared(FC)
    model.graph.node[0].device_configurations.add(configuration_id="two")
    assert reason_of(model) == "it has device configurations, which can't be carried over to the new nodes"


def test_graphs_in_a_list_and_graphs_without_a_kind_are_walked() -> None:
    inner = branch(FC, output="y", weights={"w": weight(3, 3)})
    node = h.make_node("Switch", ["x"], ["z"], name="switch", domain="com.acme", cases=[inner, inner])
    node.attribute.add(name="default").g.CopyFrom(inner)
    sites = sites_of(make_model([node], [value("x", [2, 3])], [value("z", None)]))
    assert [(site.name, site.scope) for site in sites] == [
        ("switch/cases[0]/fc", ((0, "cases[0]"),)),
        ("switch/cases[1]/fc", ((0, "cases[1]"),)),
        ("switch/default/fc", ((0, "default"),)),
    ]


def test_sites_and_skipped_cover_every_node_of_the_operators() -> None:
    """Whatever the graph, each node of an operator that has a rule is in exactly one of the two lists.

    All but lookups, which are listed only where they are in a table.
    """
    operators = sorted(set(OP_TYPES) - {"Gather"})
    generator = np.random.default_rng(0)
    for _ in range(20):
        nodes = []
        for i in range(12):
            names = [str(name) for name in generator.choice(["x", "w", "v", "k", "none", f"h{i}"], size=2)]
            op_type = str(generator.choice(operators))
            domain = RULE_OF[op_type].domain
            nodes.append(h.make_node(op_type, names, [f"h{i + 1}"], name=f"n{i}", domain=domain))
        stored = {"w": weight(3, 3), "v": weight(3, 3), "k": weight(3, 3, 3)}
        model = make_model(nodes, [value("x", None), value("h0", None)], [value("h12", None)], stored)
        sites, skipped = find_sites(model, op_types=OP_TYPES)
        names = [site.name for site in sites] + [item.name for item in skipped]
        assert sorted(names) == sorted(f"n{i}" for i in range(12))
        assert all(isinstance(site, Site) for site in sites)
        assert all(item.reason for item in skipped)


def test_weight_bytes_are_never_read() -> None:
    model = shared(FC)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = T.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="no/such/file")
    assert len(sites_of(model)) == 1


def test_the_model_is_not_changed() -> None:
    model = shared(FC, h.make_node("Custom", [], ["z"], note=b"\xff"))
    before = model.SerializeToString(deterministic=True)
    sites_of(model)
    assert model.SerializeToString(deterministic=True) == before


def test_an_empty_model_has_no_sites() -> None:
    assert find_sites(onnx.ModelProto(), op_types=OP_TYPES) == ((), ())
