from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import (
    Budget,
    Config,
    Energy,
    FixedRank,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Speedup,
)
from lowrank_onnx.errors import UsageError
from lowrank_onnx.forms import MATRIX, PAIR
from lowrank_onnx.metric import Metric
from lowrank_onnx.progress import SILENT
from lowrank_onnx.settle import Settled, check_feasible, models_searched, settle
from lowrank_onnx.types import MatrixShape, MetricComparison, Spectrum

WEIGHTS = [PlannedWeight(name, MatrixShape(1, 64, 64), (PAIR,), positions=10) for name in ("steep", "flat")]
VALUES = {"steep": 0.5 ** np.arange(64.0), "flat": np.ones(64)}
SPECTRA = {name: {MATRIX: Spectrum(v[None], float(np.sum(v**2)))} for name, v in VALUES.items()}


def kept(choices: Sequence[Choice]) -> float:
    return sum(choice.candidate.parameters for choice in choices) / (2 * 64 * 64)


def run(budget: Budget, error_of: object = None, weights: Sequence[PlannedWeight] = WEIGHTS) -> Settled:
    def unused(choices: Sequence[Choice]) -> float:
        raise AssertionError("only a search measures errors")

    measure = error_of if callable(error_of) else unused
    return settle(weights, SPECTRA, Config(budget=budget, rank_multiple=8), measure, SILENT)


@pytest.mark.parametrize("budget", [KeepParams(0.7), KeepBytes(0.7), KeepMacs(0.7)])
def test_shares_are_kept(budget: Budget) -> None:
    choices, steps = run(budget)
    assert 0.5 < kept(choices) <= 0.7
    assert steps == ()


def test_bytes_count_as_they_are_stored() -> None:
    mixed = [replace(WEIGHTS[0], itemsize=2), replace(WEIGHTS[1], itemsize=4)]
    choices, _ = run(KeepBytes(0.5), weights=mixed)
    by_hand = sum(choice.candidate.parameters * size for choice, size in zip(choices, (2, 4), strict=True))
    assert by_hand == sum(choice.candidate.stored_bytes for choice in choices)
    assert 0.4 < by_hand / (6 * 64 * 64) <= 0.5
    equal = run(KeepParams(0.5))[0]
    assert [c.candidate.rank for c in run(KeepBytes(0.5))[0]] == [c.candidate.rank for c in equal]
    assert [c.candidate.rank for c in choices] != [c.candidate.rank for c in equal]


@pytest.mark.parametrize("budget", [FixedRank(16), Energy(0.99)])
def test_budgets_by_weight_need_no_search(budget: Budget) -> None:
    choices, steps = run(budget)
    assert choices[0].candidate.rank in (8, 16)
    assert steps == ()


def test_an_impossible_share_names_the_smallest_possible() -> None:
    with pytest.raises(UsageError, match=r"--keep-params 0.1: the smallest share .* is 0.250"):
        check_feasible(WEIGHTS, Config(budget=KeepParams(0.1), rank_multiple=8))
    with pytest.raises(UsageError, match=r"--keep-bytes 0.2: the smallest share .* is 0.250"):
        check_feasible(WEIGHTS, Config(budget=KeepBytes(0.2), rank_multiple=8))
    with pytest.raises(UsageError, match=r"--keep-macs 0.249"):
        check_feasible(WEIGHTS, Config(budget=KeepMacs(0.249), rank_multiple=8))


@pytest.mark.parametrize("budget", [KeepParams(0.25), KeepMacs(0.25), Energy(0.1), MaxError(0.01)])
def test_the_smallest_share_and_other_budgets_are_feasible(budget: Budget) -> None:
    check_feasible(WEIGHTS, Config(budget=budget, rank_multiple=8))
    if isinstance(budget, KeepParams | KeepMacs):
        assert kept(run(budget)[0]) == pytest.approx(0.25)


def test_no_weights_are_no_usage_error() -> None:
    check_feasible([], Config(budget=KeepParams(0.001)))


def test_error_is_met_by_search_on_the_measured_error() -> None:
    choices, steps = run(MaxError(0.4), lambda choices: 1.0 - kept(choices))
    assert 0.6 <= kept(choices) < 0.7
    assert any(step.accepted for step in steps)
    assert any(not step.accepted for step in steps)


def test_an_error_that_no_model_meets_leaves_everything_dense_and_says_why() -> None:
    choices, steps = run(MaxError(0.05), lambda choices: 1.0)
    assert all(choice.candidate.rank is None for choice in choices)
    assert choices[0].reason == "no share tried kept the outputs' relative error within 0.05"
    assert not any(step.accepted for step in steps)


def drop_to(limit: float, drop_of: object) -> Settled:
    config = Config(budget=MaxDrop(limit), metric=Metric("m", lambda predict: 0.0), rank_multiple=8)

    def unused(choices: Sequence[Choice]) -> float:
        raise AssertionError("a drop is what is searched for")

    return settle(WEIGHTS, SPECTRA, config, unused, SILENT, drop_of=drop_of if callable(drop_of) else None)


def test_a_drop_is_met_by_search_on_the_measured_metric() -> None:
    def drop_of(choices: Sequence[Choice]) -> tuple[float, MetricComparison]:
        return 0.1, MetricComparison("m", higher_is_better=True, original=1.0, candidate=kept(choices))

    choices, steps = drop_to(0.4, drop_of)
    assert 0.6 <= kept(choices) < 0.7
    assert all(step.accepted == (step.drop is not None and step.drop <= 0.4) for step in steps)
    assert {step.accepted for step in steps} == {True, False}
    assert all(step.error == 0.1 for step in steps)
    assert len(steps) <= models_searched(Config(budget=MaxError(0.1)))


def test_what_a_drop_can_be_counts_not_what_it_was() -> None:
    def drop_of(choices: Sequence[Choice]) -> tuple[float, MetricComparison]:
        return 0.1, MetricComparison("m", True, 1.0, 1.0, samples=9, drop_bound=0.2 + 1.0 - kept(choices))

    choices, steps = drop_to(0.4, drop_of)
    assert 0.8 <= kept(choices) < 0.9
    assert {step.drop for step in steps} == {0.0}
    assert all(step.judged_drop is not None and step.accepted == (step.judged_drop <= 0.4) for step in steps)


def test_a_drop_that_no_model_keeps_leaves_everything_dense_and_says_why() -> None:
    choices, steps = drop_to(0.01, lambda choices: (0.1, MetricComparison("m", True, 1.0, 0.5)))
    assert [choice.reason for choice in choices] == ["no share tried kept the metric's drop within 0.01"] * 2
    assert not any(step.accepted for step in steps)


def test_a_drop_can_not_be_settled_without_a_metric() -> None:
    with pytest.raises(ValueError, match="without a metric"):
        drop_to(0.01, None)


def test_only_searches_by_outputs_favour_what_was_chance() -> None:
    assert models_searched(Config(budget=MaxError(0.1))) == 6
    assert models_searched(Config(budget=KeepParams(0.5))) == models_searched(Config(budget=Speedup(1.5))) == 1


def test_what_seems_lossless_stays_dense_too_where_no_model_is_good_enough() -> None:
    exact = {name: {MATRIX: Spectrum((np.arange(64.0) < 8)[None] * 1.0, 8.0)} for name in VALUES}
    config = Config(budget=MaxError(0.05), rank_multiple=8)
    choices, _ = settle(WEIGHTS, exact, config, lambda choices: 1.0, SILENT)
    assert [choice.candidate.rank for choice in choices] == [None, None]
    assert {choice.reason for choice in choices} == {"no share tried kept the outputs' relative error within 0.05"}


def test_a_search_without_positions_goes_by_parameters() -> None:
    blind = [PlannedWeight(w.name, w.shape, w.forms, positions=None) for w in WEIGHTS]
    choices, _ = run(MaxError(0.4), lambda choices: 1.0 - kept(choices), blind)
    assert 0.6 <= kept(choices) < 0.7


def test_no_weights_settle_to_nothing() -> None:
    assert run(MaxError(0.05), lambda choices: 0.0, [])[0] == ()


TIMED = [replace(weight, latency=lambda form, rank: 4.0 if rank is None else rank / 8.0) for weight in WEIGHTS]
SLOW = [replace(weight, latency=lambda form, rank: 4.0, noise=0.05) for weight in WEIGHTS]


def latency_kept(choices: Sequence[Choice]) -> float:
    return sum(choice.candidate.latency_ms or 0.0 for choice in choices) / 8.0


def race_to(speedup: float, original_ms: float, race_of: object = None) -> Settled:
    def race(choices: Sequence[Choice]) -> tuple[float, float]:
        """A model that takes 2 ms outside the sites."""
        return 0.01, 10.0 / (2.0 + 8.0 * latency_kept(choices))

    config = Config(budget=Speedup(speedup), rank_multiple=8)
    found = race_of if callable(race_of) else race
    return settle(TIMED, SPECTRA, config, lambda choices: 0.0, SILENT, race=found, original_ms=original_ms)


def test_a_search_for_an_error_goes_by_latency_where_it_is_known() -> None:
    tried: list[float] = []

    def error_of(choices: Sequence[Choice]) -> float:
        tried.append(latency_kept(choices))
        return 1.0 - tried[-1]

    choices, steps = run(MaxError(0.5), error_of, TIMED)
    assert 0.5 <= latency_kept(choices) < 0.65
    assert all(share <= step.keep for share, step in zip(tried, steps, strict=True))


def test_size_does_not_go_by_latency() -> None:
    config = Config(budget=MaxError(0.4), rank_multiple=8, objective="size")
    choices, steps = settle(SLOW, SPECTRA, config, lambda choices: 1.0 - kept(choices), SILENT)
    assert any(step.accepted for step in steps)
    assert any(choice.candidate.rank is not None for choice in choices)


def test_weights_that_no_rank_makes_faster_are_left_alone_under_an_error_but_not_under_a_share() -> None:
    choices, steps = run(MaxError(0.4), None, SLOW)
    assert [choice.reason for choice in choices] == ["no rank is measurably faster here than dense (4 ms)"] * 2
    assert steps == ()
    assert kept(run(KeepParams(0.5), None, SLOW)[0]) <= 0.5


@pytest.mark.parametrize("speedup", [1.2, 1.5, 2.0])
def test_a_speedup_is_met_as_measured(speedup: float) -> None:
    choices, steps = race_to(speedup, original_ms=10.0)
    reached = 10.0 / (2.0 + 8.0 * latency_kept(choices))
    assert speedup <= reached
    assert max(step.keep for step in steps if step.accepted) < 1.0


def test_the_first_attempt_saves_what_the_original_has_too_much() -> None:
    _, steps = race_to(1.25, original_ms=10.0, race_of=lambda choices: (0.0, 1.25))
    assert [step.keep for step in steps] == [pytest.approx(1.0 - 10.0 * 0.2 / 8.0)]


def test_sites_that_gain_less_in_the_model_than_alone_are_asked_for_more() -> None:
    choices, steps = race_to(
        1.25, original_ms=10.0, race_of=lambda choices: (0.0, 1.0 + 0.6 * (1.0 - latency_kept(choices)))
    )
    assert not steps[0].accepted
    assert 1.0 + 0.6 * (1.0 - latency_kept(choices)) >= 1.25


def test_a_speedup_out_of_reach_leaves_everything_dense_and_tells_the_best() -> None:
    choices, steps = race_to(20.0, original_ms=10.0)
    assert [choice.reason for choice in choices] == ["no model tried was 20 times as fast"] * 2
    assert max(step.speedup or 0.0 for step in steps) == pytest.approx(10.0 / (2.0 + 2.0))


def test_a_speedup_where_nothing_is_faster_races_nothing() -> None:
    config = Config(budget=Speedup(1.5), rank_multiple=8)

    def unused(choices: Sequence[Choice]) -> tuple[float, float]:
        raise AssertionError("there is nothing to race")

    choices, steps = settle(SLOW, SPECTRA, config, lambda choices: 0.0, SILENT, race=unused, original_ms=10.0)
    assert all(choice.candidate.rank is None for choice in choices)
    assert steps == ()


def test_a_speedup_is_searched_for_from_a_given_share_on() -> None:
    config = Config(budget=Speedup(1.25), rank_multiple=8)
    _, steps = settle(
        TIMED,
        SPECTRA,
        config,
        lambda choices: 0.0,
        SILENT,
        race=lambda choices: (0.0, 1.25),
        original_ms=10.0,
        start=0.5,
    )
    assert [step.keep for step in steps] == [0.5]


def test_a_speedup_can_not_be_settled_unmeasured() -> None:
    with pytest.raises(ValueError, match="without a race"):
        run(Speedup(1.5))
