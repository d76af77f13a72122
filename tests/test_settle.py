from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Budget, Config, Energy, FixedRank, KeepMacs, KeepParams, MaxError, Speedup
from lowrank_onnx.errors import UsageError
from lowrank_onnx.forms import MATRIX, PAIR
from lowrank_onnx.progress import SILENT
from lowrank_onnx.settle import Settled, check_feasible, settle
from lowrank_onnx.types import MatrixShape, Spectrum

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


@pytest.mark.parametrize("budget", [KeepParams(0.7), KeepMacs(0.7)])
def test_shares_are_kept(budget: Budget) -> None:
    choices, steps = run(budget)
    assert 0.5 < kept(choices) <= 0.7
    assert steps == ()


@pytest.mark.parametrize("budget", [FixedRank(16), Energy(0.99)])
def test_budgets_by_weight_need_no_search(budget: Budget) -> None:
    choices, steps = run(budget)
    assert choices[0].candidate.rank in (8, 16)
    assert steps == ()


def test_an_impossible_share_names_the_smallest_possible() -> None:
    with pytest.raises(UsageError, match=r"--keep-params 0.1: the smallest share .* is 0.250"):
        check_feasible(WEIGHTS, Config(budget=KeepParams(0.1), rank_multiple=8))
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
