from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.model_io import load_model
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.passes.shared import offer_shared
from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.refine.steps import Steps, plan_steps
from lowrank_onnx.refine.target import find_target
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import make_model, sites_of, value, weight

FEATURES = 6


def replaced(model: onnx.ModelProto) -> list[Replaced]:
    return [Replaced(group, group.forms[0], 2) for group in group_by_weight(sites_of(model))]


def planned(*nodes: onnx.NodeProto, output: str, weights: int) -> tuple[onnx.ModelProto, Steps]:
    stored = {f"w{index}": weight(FEATURES, FEATURES, seed=index) for index in range(weights)}
    stored["gain"] = np.linspace(0.0, 1.0, FEATURES, dtype=np.float32)
    shape = ("n", FEATURES)
    model = make_model(nodes, [value("x", shape)], [value(output, shape)], stored)
    return model, plan_steps(read_dataflow(model), replaced(model))


def names(steps: Steps) -> list[list[str]]:
    return [[member.replaced.weight.name for member in step.members] for step in steps.steps]


def matmul(read: str, number: int, made: str) -> onnx.NodeProto:
    return h.make_node("MatMul", [read, f"w{number}"], [made])


def test_what_reads_the_same_rows_is_one_step() -> None:
    _, steps = planned(
        h.make_node("Relu", ["x"], ["r"]),
        *(matmul("r", number, f"y{number}") for number in range(3)),
        h.make_node("Max", ["y0", "y1", "y2"], ["y"]),
        matmul("y", 3, "z"),
        output="z",
        weights=4,
    )
    assert names(steps) == [["w0", "w1", "w2"], ["w3"]]
    assert [step.cut for step in steps.steps] == [1, 5]


def test_the_last_of_two_terms_of_a_sum_takes_the_other_into_account() -> None:
    """A block with a projected shortcut, written after the main branch as exporters do: the shortcut goes first."""
    _, steps = planned(
        matmul("x", 0, "a"),
        h.make_node("Relu", ["a"], ["r"]),
        matmul("r", 1, "main"),
        matmul("x", 2, "shortcut"),
        h.make_node("Add", ["main", "shortcut"], ["y"]),
        output="y",
        weights=3,
    )
    assert names(steps) == [["w0", "w2"], ["w1"]]
    (last,) = steps.steps[1].members
    assert last.residual is not None
    assert last.residual.carried == "shortcut"
    assert [member.residual for member in steps.steps[0].members] == [None, None]


def test_what_no_output_depends_on_is_left() -> None:
    _, steps = planned(matmul("x", 0, "unused"), matmul("x", 1, "y"), output="y", weights=2)
    assert names(steps) == [["w1"]]
    assert list(steps.reasons.values()) == ["no output of the model depends on it"]


def test_equations_that_are_too_large_are_not_set_up() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["n", 20000])],
        [value("y", ["n", 8])],
        {"w": np.zeros((20000, 8), np.float32)},
    )
    (reason,) = plan_steps(read_dataflow(model), replaced(model)).reasons.values()
    assert reason == "its equations take 12805120000 bytes, more than the 2147483648 allowed"
    (site,) = sites_of(model)
    few, many = (plan_steps(read_dataflow(model), replaced(model), (), {site.name: rows}) for rows in (500, 19_993))
    assert names(few) == [["w"]]
    assert list(many.reasons.values()) == [reason]


def test_a_gain_scales_the_target_and_is_taken_out_of_the_factors() -> None:
    model, steps = planned(
        matmul("x", 0, "a"),
        h.make_node("Mul", ["a", "gain"], ["b"]),
        h.make_node("Add", ["b", "x"], ["y"]),
        output="y",
        weights=1,
    )
    target = find_target(load_model(model), read_dataflow(model), steps.steps[0].members[0])
    gain = np.linspace(0.0, 1.0, FEATURES, dtype=np.float32)
    assert target.carried == "x"
    np.testing.assert_array_equal(target.W[0], weight(FEATURES, FEATURES, seed=0) * gain)
    right = weight(1, 2, FEATURES, seed=5)
    returned = target.out_of_metric(target.in_metric(right))
    np.testing.assert_allclose(returned[..., 1:], right[..., 1:], rtol=1e-6)
    np.testing.assert_array_equal(returned[..., 0], 0.0)  # its gain is 0


def test_a_gain_that_is_not_for_the_features_leaves_the_plain_target() -> None:
    model = make_model(
        [
            h.make_node("MatMul", ["x", "w"], ["a"]),
            h.make_node("Mul", ["a", "rows"], ["b"]),
            h.make_node("Add", ["b", "x"], ["y"]),
        ],
        [value("x", [FEATURES, FEATURES])],
        [value("y", [FEATURES, FEATURES])],
        {"w": weight(FEATURES, FEATURES), "rows": weight(FEATURES, 1, seed=1)},
    )
    steps = plan_steps(read_dataflow(model), replaced(model))
    target = find_target(load_model(model), read_dataflow(model), steps.steps[0].members[0])
    assert target.carried is None
    np.testing.assert_array_equal(target.W[0], weight(FEATURES, FEATURES))


def test_a_part_of_those_that_share_a_first_factor_is_left_as_planned() -> None:
    stored = {f"w{index}": weight(FEATURES, FEATURES, seed=index) for index in range(2)}
    nodes = [matmul("x", index, f"y{index}") for index in range(2)]
    outputs = [value(f"y{index}", ("n", FEATURES)) for index in range(2)]
    model = make_model(nodes, [value("x", ("n", FEATURES))], outputs, stored)
    shared = [Replaced(group, group.form("shared"), 3) for group in group_by_weight(offer_shared(sites_of(model)))]
    flow = read_dataflow(model)
    both = plan_steps(flow, shared)
    assert names(both) == [["w0", "w1"]]
    assert not both.reasons
    one = plan_steps(flow, shared[1:])
    assert not one.steps
    assert list(one.reasons.values()) == ["others that share its first factor can't be solved again"]


def two_layers(second: np.ndarray) -> tuple[onnx.ModelProto, Steps]:
    model = make_model(
        [
            h.make_node("MatMul", ["x", "w0"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w1"], ["y"]),
        ],
        [value("x", ["n", FEATURES])],
        [value("y", ["n", second.shape[1]])],
        {"w0": weight(FEATURES, FEATURES), "w1": second},
    )
    return model, plan_steps(read_dataflow(model), replaced(model), sites_of(model))


def test_an_error_counts_by_what_the_next_weight_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank_onnx.refine.target.PLAIN", 0.0)
    second = weight(FEATURES, 9, seed=1)
    model, steps = two_layers(second)
    flow = read_dataflow(model)
    first, last = (find_target(load_model(model), flow, step.members[0]) for step in steps.steps)
    error = weight(1, 3, FEATURES, seed=2)
    counted = float(np.sum(np.square(first.in_metric(error))))
    assert counted == pytest.approx(
        np.sum(np.square(error[0] @ second)) * FEATURES / np.sum(np.square(second)), rel=1e-5
    )
    np.testing.assert_allclose(first.out_of_metric(first.in_metric(error)), error, atol=1e-5)
    np.testing.assert_allclose(first.W[0], first.in_metric(weight(FEATURES, FEATURES)[None])[0], rtol=1e-6)
    assert last.metric is None  # its outputs are the model's


@pytest.mark.parametrize("fill", [0.0, 1e30, np.inf])
def test_a_weight_that_gives_no_metric_leaves_the_plain_target(fill: float) -> None:
    model, steps = two_layers(np.full((FEATURES, FEATURES), fill, np.float32))
    target = find_target(load_model(model), read_dataflow(model), steps.steps[0].members[0])
    np.testing.assert_array_equal(target.W[0], weight(FEATURES, FEATURES))


def test_weights_that_see_few_directions_give_no_metric() -> None:
    model, steps = two_layers(weight(FEATURES, FEATURES - 1, seed=1))
    target = find_target(load_model(model), read_dataflow(model), steps.steps[0].members[0])
    assert target.metric is None
