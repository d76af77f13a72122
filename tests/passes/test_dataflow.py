from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx import helper as h

from lowrank_onnx.passes.dataflow import (
    Dataflow,
    Precedence,
    changed_values,
    extract_piece,
    live_values,
    nodes_between,
    read_dataflow,
)
from tests.passes.models import constant, make_model, value, weight


def branching() -> onnx.ModelProto:
    """x -> a -> (b -> c, d) -> sum; the constants k and k2 = -k are computed beside them, and z is of no use."""
    nodes = [
        constant("k", np.array(3.0, np.float32)),
        h.make_node("Relu", ["x"], ["a"]),
        h.make_node("MatMul", ["a", "w"], ["b"]),
        h.make_node("Neg", ["k"], ["k2"]),
        h.make_node("Mul", ["b", "k2"], ["c"]),
        h.make_node("Abs", ["a"], ["d"]),
        h.make_node("Exp", ["a"], ["z"]),
        h.make_node("Add", ["c", "d"], ["sum"]),
    ]
    return make_model(nodes, [value("x", ["n", 4])], [value("sum", ["n", 4])], {"w": weight(4, 4)})


def test_what_no_input_reaches_is_constant() -> None:
    flow = read_dataflow(branching())
    assert flow.constants == {"w", "k", "k2"}
    assert flow.readers["a"] == (2, 5, 6)


def test_random_values_are_no_constants() -> None:
    nodes = [h.make_node("RandomNormal", [], ["noise"], shape=[4]), h.make_node("Add", ["x", "noise"], ["y"])]
    flow = read_dataflow(make_model(nodes, [value("x", [4])], [value("y", [4])]))
    assert "noise" not in flow.constants


def test_the_order_is_the_models_without_what_is_not_needed() -> None:
    assert Precedence(read_dataflow(branching())).order() == (1, 2, 4, 5, 7)


def test_a_demand_moves_what_it_needs_ahead_and_nothing_else() -> None:
    precedence = Precedence(read_dataflow(branching()))
    assert precedence.demand(2, "d")
    assert precedence.order() == (1, 5, 2, 4, 7)


def test_a_demand_in_a_circle_is_refused() -> None:
    precedence = Precedence(read_dataflow(branching()))
    assert not precedence.demand(2, "c")
    assert precedence.demand(2, "d")
    assert not precedence.demand(5, "c")  # what d waits for now waits for d
    assert precedence.order() == (1, 5, 2, 4, 7)


def test_values_are_live_between_what_makes_and_what_reads_them() -> None:
    flow = read_dataflow(branching())
    order = (1, 2, 4, 5, 7)
    lives = [live_values(flow, order, cut) for cut in range(6)]
    assert lives == [("x",), ("a",), ("a", "b"), ("a", "c"), ("c", "d"), ("sum",)]


def captured() -> onnx.ModelProto:
    """The branches of an If read `a`, the weight and a constant of the graph around them."""
    branches = {
        name: h.make_graph(
            [h.make_node("MatMul", ["a", "w"], ["in_b"]), h.make_node("Mul", ["in_b", "k"], [f"{name}_out"])],
            name,
            [],
            [value(f"{name}_out", None)],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [
        constant("k", np.array(2.0, np.float32)),
        h.make_node("Relu", ["x"], ["a"]),
        h.make_node("If", ["flag"], ["y"], **branches),
    ]
    inputs = [value("x", ["n", 4]), value("flag", [], TensorProto.BOOL)]
    return make_model(nodes, inputs, [value("y", ["n", 4])], {"w": weight(4, 4)})


def test_what_subgraphs_read_counts() -> None:
    flow = read_dataflow(captured())
    assert set(flow.reads[2]) == {"flag", "a", "w", "k"}
    assert live_values(flow, (1, 2), 1) == ("a", "flag")


def run_in_pieces(flow: Dataflow, cuts: tuple[int, ...], values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = Precedence(flow).order()
    for begin, end in zip((0, *cuts), (*cuts, len(order)), strict=True):
        nodes = order[begin:end]
        made = {name for node in nodes for name in flow.node(node).output}
        read = {name for node in nodes for name in flow.varying(node)} - made
        types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.bool_): TensorProto.BOOL}
        inputs = [value(name, [None] * values[name].ndim, types[values[name].dtype]) for name in sorted(read)]
        outputs = [name for name in live_values(flow, order, end) if name in made]
        piece = extract_piece(flow, nodes, inputs, outputs)
        session = ort.InferenceSession(piece.SerializeToString(), providers=["CPUExecutionProvider"])
        results = session.run(outputs, {name: values[name] for name in read})
        values = {**values, **dict(zip(outputs, results, strict=True))}
    return values


def test_pieces_one_after_the_other_are_the_model() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for model, feed in ((branching(), {"x": x}), (captured(), {"x": x, "flag": np.array(True)})):
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        flow = read_dataflow(model)
        count = len(Precedence(flow).order())
        for cut in range(1, count):
            found = run_in_pieces(flow, (cut,), dict(feed))
            for name, expected in zip(flow.outputs, session.run(None, feed), strict=True):
                np.testing.assert_array_equal(found[name], expected)


def test_the_nodes_between_values_are_those_that_make_them() -> None:
    flow = read_dataflow(branching())
    assert nodes_between(flow, ["x"], ["sum"]) == ((1, 2, 4, 5, 7), ("x",))
    assert nodes_between(flow, ["a", "b", "x"], ["sum"]) == ((4, 5, 7), ("a", "b"))
    assert nodes_between(flow, ["a", "b"], ["z", "c"]) == ((4, 6), ("a", "b"))
    assert nodes_between(flow, ["a"], []) == ((), ())


def test_what_depends_on_a_node_changes_with_it() -> None:
    flow = read_dataflow(branching())
    assert changed_values(flow, [2]) == {"b", "c", "sum"}
    assert changed_values(flow, [1]) == {"a", "b", "c", "d", "z", "sum"}
    assert changed_values(flow, []) == frozenset()
    assert changed_values(read_dataflow(captured()), [0]) >= {captured().graph.output[0].name}
