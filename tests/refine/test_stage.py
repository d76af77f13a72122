from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h

import lowrank_onnx
from lowrank_onnx import Config, KeepParams
from lowrank_onnx.attempt import Workshop
from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate import compare_outputs, load_feeds, open_session
from lowrank_onnx.linalg.lapack import beside_runtime
from lowrank_onnx.model_io import model_bytes
from lowrank_onnx.refine import refine_factors
from lowrank_onnx.refine.known import Known
from lowrank_onnx.refine.pieces import Bounds
from lowrank_onnx.refine.regression import Regression, RegressionSum
from lowrank_onnx.refine.replaced import replaced_weights
from lowrank_onnx.refine.solve import part_solver
from lowrank_onnx.refine.stage import UNDONE
from lowrank_onnx.refine.write_form import Parts, Problem
from lowrank_onnx.types import Array
from tests.passes.models import make_model, value, weight
from tests.refine.builders import OPTIONS, WIDTH, error_on, in_form, inputs, layers, workshop

FEEDS = inputs(16)
UNSEEN = inputs(8, seed=2)


@pytest.mark.parametrize("residual", [False, True])
def test_the_error_on_unseen_feeds_falls(tmp_path: Path, residual: bool) -> None:
    shop, choices = workshop(layers(6, residual=residual), FEEDS, tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS)
    report = refined.report
    planned, after = (error_on(shop, choices, spool, UNSEEN) for spool in (shop.spool, refined.spool))
    assert after < 0.95 * planned
    assert report.error_before is not None
    assert report.error_after is not None
    assert report.error_after < report.error_before
    assert (report.feeds, report.held_out, report.note) == (12, 4, "")
    first, *others = report.weights
    assert (first.refined, first.reason, first.pull) == (False, "its inputs are the original's", None)
    assert all(other.refined and other.pull and other.rows == 12 * 48 for other in others)
    assert [other.target for other in others] == (["sum", "output"] * 3)[: len(others)] if residual else ["output"] * 5


def test_a_sum_is_met_better_than_the_output_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the residual stream has lost can be made good by the sites that write into it, and only if they know."""
    shops = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        shops.append(workshop(layers(6, residual=True, seed=seed), FEEDS, tmp_path / str(seed), 6))

    def error() -> float:
        return sum(error_on(*shop, refine_factors(*shop, OPTIONS).spool, UNSEEN) for shop in shops)

    towards_sum = error()
    monkeypatch.setattr("lowrank_onnx.refine.steps.find_residual", lambda flow, site: None)
    assert towards_sum < 0.95 * error()


@pytest.mark.parametrize("residual", [False, True])
def test_at_full_rank_nothing_changes_beyond_rounding(tmp_path: Path, residual: bool) -> None:
    shop, choices = workshop(layers(4, residual=residual), FEEDS, tmp_path, None)
    refined = refine_factors(shop, choices, OPTIONS)
    assert error_on(shop, choices, refined.spool, UNSEEN) < 1e-5


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[Problem], bool]) -> None:
    """Make the solver of some weights turn the sign of L: an error that their own check doesn't stop."""

    def solver(problem: Problem, fit: Known) -> Callable[[float], Parts | None]:
        honest = part_solver(problem, fit)

        def solve(ridge: float) -> Parts | None:
            parts = honest(ridge)
            return {**parts, "left": -parts["left"]} if parts and bad(problem) else parts

        return solve

    monkeypatch.setattr("lowrank_onnx.refine.solve.part_solver", solver)


def test_a_walk_that_makes_it_worse_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 6)
    spoil(monkeypatch, lambda problem: True)
    refined = refine_factors(shop, choices, OPTIONS)
    assert {w.reason for w in refined.report.weights[1:]} == {UNDONE}
    assert not any(w.refined for w in refined.report.weights)
    assert refined.report.error_after == refined.report.error_before
    for one in replaced_weights(shop.groups, choices):
        assert one.factors(refined.spool) == one.factors(shop.spool)


def test_what_only_all_feeds_solve_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pull was chosen then, and nothing is known of what would come of it."""
    seen: set[str] = set()

    def solver(problem: Problem, known: Known) -> Callable[[float], Parts | None]:
        if problem.weight.name in seen:
            return part_solver(problem, known)
        seen.add(problem.weight.name)
        return lambda ridge: None

    shop, choices = workshop(layers(3), FEEDS, tmp_path, 6)
    monkeypatch.setattr("lowrank_onnx.refine.solve.part_solver", solver)
    report = refine_factors(shop, choices, OPTIONS).report
    assert [one.reason for one in report.weights[1:]] == ["the pair form can't hold what was solved"] * 2


def test_the_beginning_that_helps_most_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, choices = workshop(layers(8), FEEDS, tmp_path, 4)
    spoil(monkeypatch, lambda problem: problem.weight.name == "w7")
    refined = refine_factors(shop, choices, OPTIONS)
    kept = [w.refined for w in refined.report.weights]
    assert kept == [False] + [True] * sum(kept) + [False] * (7 - sum(kept))
    assert 1 <= sum(kept) < 7
    assert refined.report.weights[-1].reason == UNDONE
    assert refined.report.error_before is not None
    assert refined.report.error_after is not None
    assert refined.report.error_after < refined.report.error_before
    errors = [error_on(shop, choices, spool, UNSEEN) for spool in (refined.spool, shop.spool)]
    assert errors[0] < errors[1]


def test_held_out_feeds_decide(tmp_path: Path) -> None:
    """Errors in the report are those on the held-out feeds, before and after."""
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS)
    held_out = list(shop.original.held_out)
    told = (refined.report.error_before, refined.report.error_after)
    assert told == tuple(error_on(shop, choices, spool, held_out) for spool in (shop.spool, refined.spool))


def test_one_feed_is_not_enough(tmp_path: Path) -> None:
    shop, choices = workshop(layers(3), inputs(1), tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS)
    assert refined.report.note == "1 feed to calibrate with: give at least 2, of which one is held out"
    assert refined.report.weights == ()
    assert refined.spool is shop.spool


def test_two_feeds_are(tmp_path: Path) -> None:
    shop, choices = workshop(layers(3), inputs(2, rows=400), tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS)
    assert (refined.report.feeds, refined.report.held_out) == (2, 1)
    assert error_on(shop, choices, refined.spool, UNSEEN) < error_on(shop, choices, shop.spool, UNSEEN)


def test_inputs_that_are_all_zero_say_nothing(tmp_path: Path) -> None:
    model = layers(3)
    next(t for t in model.graph.initializer if t.name == "b0").CopyFrom(
        onnx.numpy_helper.from_array(np.full(WIDTH, -1e6, np.float32), "b0")  # the Relu lets nothing through
    )
    shop, choices = workshop(model, FEEDS, tmp_path, 6, whiten=False)
    reasons = [w.reason for w in refine_factors(shop, choices, OPTIONS).report.weights]
    assert reasons[1] == "its inputs on these feeds are all 0, or too large to square"


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    shop, choices = workshop(layers(4, residual=True), FEEDS, tmp_path, 6)
    models = []
    for _ in range(2):
        refined = refine_factors(shop, choices, OPTIONS)
        models.append(
            model_bytes(build_candidate(shop.model, shop.groups, choices, refined.spool, measure=False).model)
        )
    assert models[0] == models[1]


def test_it_does_not_matter_where_values_wait(tmp_path: Path) -> None:
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 6)
    kept, spilled = (refine_factors(shop, choices, OPTIONS, bounds=bounds) for bounds in (Bounds(), Bounds(memory=0)))
    assert kept.report == spilled.report
    assert not list(tmp_path.glob("activation.*"))


def test_feeds_without_room_are_given_up(tmp_path: Path) -> None:
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 6)
    one_value = 48 * WIDTH * 4
    refined = refine_factors(shop, choices, OPTIONS, bounds=Bounds(memory=10 * one_value, disk=0))
    assert refined.report.note == "3 of 12 feeds were used: there was no room for more"
    assert refined.report.feeds == 3


def test_room_for_one_feed_is_too_little(tmp_path: Path) -> None:
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS, bounds=Bounds(memory=0, disk=0))
    assert refined.report.note == "value 'm1 (step 1)' leaves no room for those of 2 feeds: give smaller feeds"
    assert refined.spool is shop.spool


def test_weights_that_are_shared_or_inside_subgraphs_stay(tmp_path: Path) -> None:
    branches = {
        name: h.make_graph([h.make_node("MatMul", ["r", "inner"], [name])], name, [], [value(name, ["n", WIDTH])])
        for name in ("then_branch", "else_branch")
    }
    del branches["else_branch"].node[:]
    branches["else_branch"].node.append(h.make_node("Identity", ["r"], ["else_branch"]))
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("Relu", ["a"], ["b"]),
        h.make_node("MatMul", ["b", "w"], ["c"]),
        h.make_node("Relu", ["c"], ["r"]),
        h.make_node("ReduceMax", ["r"], ["most"], keepdims=0),
        h.make_node("Greater", ["most", "zero"], ["flag"]),
        h.make_node("If", ["flag"], ["d"], **branches),
        h.make_node("MatMul", ["d", "last"], ["y"]),
    ]
    weights = {name: weight(WIDTH, WIDTH, seed=seed) for seed, name in enumerate(("w", "inner", "last"))}
    weights["zero"] = np.array(0.0, np.float32)
    model = make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)
    shop, choices = workshop(model, FEEDS, tmp_path, 6)
    report = refine_factors(shop, choices, OPTIONS).report
    reasons = {w.weight: w.reason for w in report.weights}
    assert reasons["w"] == "its weight is shared by 2 nodes, whose inputs don't change alike"
    assert reasons["inner"] == "it is in a subgraph, whose values onnxruntime doesn't return"
    assert reasons["last"] in ("", UNDONE)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "group": st.sampled_from([1, 2]),
        "kernel": st.sampled_from([1, 3]),
        "stride": st.sampled_from([1, 2]),
        "transposed": st.booleans(),
        "residual": st.booleans(),
    }
)


def convolutions(group: int, kernel: int, stride: int, transposed: bool, residual: bool) -> onnx.ModelProto:
    """Two plain convolutions, then one of the kind in question, which may write into a sum."""
    channels = 8
    generator = np.random.default_rng(3)
    kinds = [(1, 3, 1, False), (1, 3, 1, False), (group, kernel, stride, transposed)]
    weights: dict[str, Array] = {}
    nodes, here = [], "x"
    for index, (groups, size, step, upwards) in enumerate(kinds):
        shape = (channels, channels // groups, size, size)
        weights[f"w{index}"] = (generator.standard_normal(shape) / size / 2).astype(np.float32)
        weights[f"b{index}"] = generator.standard_normal(channels).astype(np.float32)
        names, kind = [here, f"w{index}", f"b{index}"], "ConvTranspose" if upwards else "Conv"
        pads = [size // 2] * 4
        nodes.append(h.make_node(kind, names, [f"c{index}"], group=groups, strides=[step, step], pads=pads))
        nodes.append(h.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        here = f"r{index}"
    if residual and stride == 1:
        nodes[-1] = h.make_node("Add", ["c2", "r0"], ["r2"])
    image = value("x", ["n", channels, 6, 6])
    return make_model(nodes, [image], [value("r2", ["n", channels, None, None])], weights)


@settings(max_examples=12, deadline=None)
@given(kind=CONVOLUTIONS)
def test_convolutions_of_every_kind_get_no_worse(
    kind: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = np.random.default_rng(4)
    batches = [generator.standard_normal((8, 8, 6, 6)).astype(np.float32) for _ in range(12)]
    shop, choices = workshop(
        convolutions(**kind),  # type: ignore[arg-type]
        [{"x": batch} for batch in batches[:8]],
        tmp_path_factory.mktemp("convolutions"),
        3,
    )
    report = refine_factors(shop, choices, OPTIONS).report
    third = report.weights[2]
    assert third.target == ("sum" if kind["residual"] and kind["stride"] == 1 and not kind["transposed"] else "output")
    assert report.error_before is not None
    assert report.error_after is not None
    assert report.error_after <= report.error_before
    assert third.error_before is not None
    assert third.error_after is not None
    assert third.error_after < third.error_before * 1.02


def workshop_in_form(name: str, directory: Path) -> tuple[Workshop, tuple[Choice, ...]]:
    """A model whose weights all have a form."""
    if name in ("pair", "pivoted"):
        shop, choices = workshop(layers(4), inputs(16), directory, 4)
        return (shop, choices) if name == "pair" else in_form(shop, choices, name, 4)
    generator = np.random.default_rng(4)
    feeds = [{"x": generator.standard_normal((8, 8, 6, 6)).astype(np.float32)} for _ in range(16)]
    return in_form(*workshop(convolutions(1, 3, 1, False, False), feeds, directory, 4), name, 4)


@pytest.mark.parametrize("name", ["pivoted", "conv_spatial", "conv_tucker", "conv_input"])
def test_every_form_that_stands_alone_is_solved_again(tmp_path: Path, name: str) -> None:
    shop, choices = workshop_in_form(name, tmp_path)
    refined = refine_factors(shop, choices, OPTIONS)
    for one, outcome in zip(replaced_weights(shop.groups, choices)[1:], refined.report.weights[1:], strict=True):
        assert outcome.refined, outcome.reason
        assert outcome.error_before is not None
        assert outcome.error_after is not None
        assert outcome.error_after < 1.02 * outcome.error_before
        planned, solved = (one.factors(spool) for spool in (shop.spool, refined.spool))
        assert planned.form == solved.form
        assert {part: values.shape for part, values in planned.parts().items()} == {
            part: values.shape for part, values in solved.parts().items()
        }
    assert refined.report.error_after is not None
    assert refined.report.error_before is not None
    assert refined.report.error_after < refined.report.error_before


def bottleneck(width: int) -> onnx.ModelProto:
    """A product with `width` features, a Relu, and one with many more features than outputs."""
    weights = {"w0": weight(WIDTH, width, seed=1), "w1": weight(width, WIDTH, seed=2)}
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["m"]),
        h.make_node("Relu", ["m"], ["r"]),
        h.make_node("MatMul", ["r", "w1"], ["y"]),
    ]
    return make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)


@pytest.mark.parametrize("form", ["pair", "pivoted"])
def test_few_rows_are_solved_as_their_equations_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    shop, choices = workshop(bottleneck(200), inputs(16, rows=14), tmp_path, 6, whiten=False)
    if form == "pivoted":
        shop, choices = in_form(shop, choices, form, 6)
    solved: list[RegressionSum] = []
    original = RegressionSum.finish

    def finish(self: RegressionSum) -> Regression:
        solved.append(self)
        return original(self)

    monkeypatch.setattr(RegressionSum, "finish", finish)
    rows = refine_factors(shop, choices, OPTIONS)
    assert not solved
    monkeypatch.setattr("lowrank_onnx.refine.evidence.are_few", lambda *sizes: False)
    equations = refine_factors(shop, choices, OPTIONS)
    assert len(solved) == 2
    assert rows.report.weights[1].refined
    assert [one.pull for one in rows.report.weights] == [one.pull for one in equations.report.weights]
    (last,) = replaced_weights(shop.groups, choices)[1:]
    np.testing.assert_allclose(last.product(rows.spool), last.product(equations.spool), atol=1e-4)


def test_more_rows_than_there_is_room_for_are_not_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds may be larger than the first one, by which the weight was found to have few rows."""
    monkeypatch.setattr("lowrank_onnx.refine.steps.MAX_EQUATION_BYTES", 4 * 8 * 199 * 215)
    monkeypatch.setattr("lowrank_onnx.refine.evidence.MAX_EQUATION_BYTES", 4 * 8 * 199 * 215)
    feeds = [*inputs(1, rows=8), *inputs(15, rows=48)]
    shop, choices = workshop(bottleneck(200), feeds, tmp_path, 6)
    last = refine_factors(shop, choices, OPTIONS).report.weights[1]
    assert last.reason == "its input 'r' has 536 rows, whose equations take 1382400 bytes, more than 1369120"


@pytest.mark.parametrize("name", ["pair", "pivoted", "conv_input"])
def test_what_is_begun_on_the_chance_of_being_wanted_changes_nothing(tmp_path: Path, name: str) -> None:
    """With two threads pulls are tried side by side, with one only those that are asked for."""
    shop, choices = workshop_in_form(name, tmp_path)
    found = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"), beside_runtime():
            found.append(refine_factors(shop, choices, OPTIONS))
    assert found[0].report == found[1].report
    for one in replaced_weights(shop.groups, choices):
        alone, beside = (one.factors(refined.spool).parts() for refined in found)
        assert all(np.array_equal(alone[part], beside[part]) for part in alone)


def bundles(count: int) -> onnx.ModelProto:
    """`count` times three MatMuls on the same tensor, which are added up, and a Relu."""
    generator = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes, here = [], "x"
    for index in range(count):
        for one in "qkv":
            weights[f"{one}{index}"] = (generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
            nodes.append(h.make_node("MatMul", [here, f"{one}{index}"], [f"{one}{index}.out"], name=f"{one}{index}"))
        nodes.append(h.make_node("Sum", [f"{one}{index}.out" for one in "qkv"], [f"s{index}"]))
        nodes.append(h.make_node("Relu", [f"s{index}"], [f"r{index}"]))
        here = f"r{index}"
    nodes.append(h.make_node("Identity", [here], ["y"]))
    return make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)


def test_weights_that_share_a_first_factor_are_solved_as_one() -> None:
    model = bundles(4)
    config = Config(budget=KeepParams(0.5), forms=("shared",), objective="size")
    planned, refined = (
        lowrank_onnx.compress(model, replace(config, refine=refine), feeds=inputs(24)) for refine in (False, True)
    )
    assert {site.form for site in refined.sites if site.rank} == {"shared"}
    assert refined.refinement is not None
    first = {w.weight for w in refined.refinement.weights if w.reason == "its inputs are the original's"}
    others = [w for w in refined.refinement.weights if w.weight not in first]
    assert len(first) == 3
    assert others
    assert all(weight.refined for weight in others)
    pulls = {weight.weight[1:]: weight.pull for weight in others}
    assert all(weight.pull == pulls[weight.weight[1:]] for weight in others)
    assert refined.model is not None
    lefts = [t.name for t in refined.model.graph.initializer if t.name.endswith(".left")]
    assert len(lefts) == sum(site.rank is not None for site in refined.sites) // 3
    unseen = inputs(8, seed=2)
    errors = []
    for result in (planned, refined):
        assert result.model is not None
        session, original = (open_session(one.SerializeToString()) for one in (result.model, model))
        (output,) = compare_outputs(original, session, load_feeds(unseen, original.inputs))
        errors.append(output.error)
    assert errors[1] < errors[0]
