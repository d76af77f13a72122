from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import Config, FixedRank, KeepParams
from lowrank_onnx.attempt import TRUST_IN_FEW
from lowrank_onnx.calibration import predicted_damage, stored_layout
from lowrank_onnx.forms import PAIR
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.types import Rearrangement, Site, WeightRef, rearrange
from lowrank_onnx.weights import SharedWeight

PLAIN = Config(budget=FixedRank(8), objective="size", whiten=False, sensitivity="off")


SQUARE = Rearrangement((4, 4), (0, 1), (1, 4, 4))


def shared(name: str, to_matrices: Rearrangement = SQUARE) -> SharedWeight:
    weight = WeightRef((), name, "initializer", "float32", to_matrices.split)
    return SharedWeight(weight, (Site(name, (), 0, "MatMul", weight, to_matrices, (PAIR,), "x", "y", "y", 4),))


@given(st.permutations(range(4)), st.tuples(*[st.integers(1, 4)] * 4))
def test_stored_layout_undoes_the_way_to_matrices(order: list[int], split: tuple[int, int, int, int]) -> None:
    moved = [split[axis] for axis in order]
    to_matrices = Rearrangement(split, tuple(order), (moved[0], moved[1], moved[2] * moved[3]))
    stored = np.arange(np.prod(split)).reshape(split)
    site = shared("w", to_matrices).sites[0]
    np.testing.assert_array_equal(stored_layout(rearrange(stored, to_matrices), site), stored)


def test_damage_is_what_was_measured_or_else_typical() -> None:
    groups = [shared(name) for name in ("light", "heavy", "typical", "unknown")]
    measured = {
        group.weight: Sensitivity(group.weight, (2,), (importance * 0.1,), (0.1,), importance, True)
        for group, importance in zip(groups, (0.01, 100.0, 1.0), strict=False)
    }
    hidden = Unmeasured(groups[3].weight, "nothing is lost at any rank tried")
    damages = predicted_damage(groups, {**measured, groups[3].weight: hidden})
    assert [damage(0.1) for damage in damages] == pytest.approx([0.001, 10.0, 0.1, 0.1])
    assert [damage(0.0) for damage in damages] == [0.0] * 4


def test_with_nothing_measured_damage_is_the_tail_itself() -> None:
    assert [damage(0.3) for damage in predicted_damage([shared("a"), shared("b")], {})] == [0.3, 0.3]


def linear(weight: np.ndarray, scale: float = 1.0) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32) * np.float32(scale), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def held_out_error(
    model: onnx.ModelProto, config: Config, feeds: list[Mapping[str, np.ndarray]], test: np.ndarray
) -> float:
    result = lowrank_onnx.compress(model, replace(config, validate=False), feeds=feeds)
    assert result.model is not None
    verdict = lowrank_onnx.validate(model, result.model, feeds=[{"x": test}])
    assert verdict.passed, verdict.failures
    return verdict.relative_error


def rows(kind: str, count: int, size: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, size)) * 0.95 ** np.arange(size)
    if kind == "duplicated features":
        values[:, size // 2 :] = values[:, : size - size // 2]
    if kind == "constant inputs":
        values[:, ::3] = 2.0
    if kind == "dead inputs":
        values[:, ::2] = 0.0
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["plain", "duplicated features", "constant inputs", "dead inputs"])
def test_whitening_lowers_the_error_on_inputs_that_it_has_not_seen(kind: str) -> None:
    model = linear(np.random.default_rng(1).standard_normal((96, 64)))
    feeds: list[Mapping[str, np.ndarray]] = [{"x": rows(kind, 64, 96, seed)} for seed in range(8)]
    test = rows(kind, 256, 96, 100)
    plain = held_out_error(model, PLAIN, feeds, test)
    whitened = held_out_error(model, replace(PLAIN, whiten=True), feeds, test)
    assert whitened < 0.9 * plain


def test_eight_samples_of_1536_features_do_no_harm() -> None:
    generator = np.random.default_rng(0)
    u, v = (np.linalg.qr(generator.standard_normal((side, 64)))[0] for side in (1536, 64))
    model = linear((u * 0.9 ** np.arange(64)) @ v.T)
    feeds: list[Mapping[str, np.ndarray]] = [
        {"x": generator.standard_normal((1, 1536)).astype(np.float32)} for _ in range(8)
    ]
    test = generator.standard_normal((64, 1536)).astype(np.float32)
    plain = held_out_error(model, PLAIN, feeds, test)
    whitened = held_out_error(model, replace(PLAIN, whiten=True), feeds, test)
    assert whitened <= 1.02 * plain


def test_measured_sensitivity_spares_the_weight_that_matters() -> None:
    """Two branches of equal spectra; one is multiplied by a thousandth before they are added."""
    weight = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "loud"], ["a"], name="loud"),
        helper.make_node("MatMul", ["x", "quiet"], ["b"], name="quiet"),
        helper.make_node("Mul", ["b", "thousandth"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    values = {"loud": weight, "quiet": weight.T.copy(), "thousandth": np.array(1e-3, np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feeds: list[Mapping[str, np.ndarray]] = [{"x": rows("plain", 32, 64, seed)} for seed in range(4)]
    config = Config(budget=KeepParams(0.65), objective="size", rank_multiple=8)
    by_name = {site.name: site.rank for site in lowrank_onnx.compress(model, config, feeds=feeds).sites}
    assert by_name["loud"] is None
    assert by_name["quiet"] is not None
    blind = replace(config, sensitivity="off")
    ranks = [site.rank for site in lowrank_onnx.compress(model, blind, feeds=feeds).sites]
    assert None not in ranks


def in_a_branch(weight: np.ndarray) -> onnx.ModelProto:
    """A MatMul in the main graph, and one with a weight of its own in each branch of an If."""

    def branch(name: str) -> onnx.GraphProto:
        values = [numpy_helper.from_array(weight, f"w_{name}")]
        node = helper.make_node("MatMul", ["h", f"w_{name}"], [f"z_{name}"], name=name)
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"z_{name}", TensorProto.FLOAT, ["n", 64])], values
        )

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="outer"),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("then"), else_branch=branch("else"), name="if"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_each_site_in_a_subgraph_says_why_it_is_not_whitened() -> None:
    model = in_a_branch(np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32))
    feeds = [{"x": rows("plain", 128, 64, seed), "flag": np.asarray(seed % 2 == 0)} for seed in range(4)]
    config = Config(budget=KeepParams(0.6), objective="size")
    sites = {site.name.split("/")[-1]: site for site in lowrank_onnx.compress(model, config, feeds=feeds).sites}
    reason = "not whitened: it is in a subgraph, whose values onnxruntime doesn't return"
    assert sites["outer"].note == ""
    assert sites["outer"].importance is not None
    assert sites["then"].note == sites["else"].note == reason
    assert sites["then"].input_error is None
    assert sites["then"].macs_before is None


def test_samples_too_few_to_part_are_trusted_a_little_and_more_are_tried() -> None:
    model = linear(np.random.default_rng(1).standard_normal((64, 64)))
    config = Config(budget=KeepParams(0.6), objective="size")
    few = lowrank_onnx.compress(model, config, feeds=[{"x": rows("plain", 3, 64, 0)}])
    assert [(trial.trust, trial.error) for trial in few.trials] == [(TRUST_IN_FEW, None)]
    more = lowrank_onnx.compress(model, config, feeds=[{"x": rows("plain", 32, 64, seed)} for seed in range(4)])
    trusts = [(1.0, False), (0.5, False), (0.25, False), (0.0, False), (0.0, True)]
    assert [(trial.trust, trial.plain) for trial in more.trials] == trusts
    assert len({trial.error for trial in more.trials if not trial.plain}) == 1  # there is but one weight to plan for
    off = lowrank_onnx.compress(model, replace(config, sensitivity="off"), feeds=[{"x": rows("plain", 32, 64, 0)}])
    assert off.trials == ()
