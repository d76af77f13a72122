from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.candidates import PlannedWeight, low_rank_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config, KeepParams, MaxError
from lowrank_onnx.forms import MATRIX, PAIR, PIVOTED
from lowrank_onnx.progress import SILENT
from lowrank_onnx.settle import settle
from lowrank_onnx.trust import FLAT, SAME, TRUSTS, PlanJudge, in_own_unit, last_good, with_trust
from lowrank_onnx.types import MatrixShape, Spectrum

SHAPE = MatrixShape(1, 64, 64)
EVEN = {MATRIX: Spectrum(np.ones((1, 64)), 64.0)}
FALLING = {MATRIX: Spectrum(0.9 ** np.arange(64.0)[None], float(np.sum(0.81 ** np.arange(64.0))))}
SPECTRA = {"loud": FALLING, "mute": FALLING}
WEIGHTS = (
    PlannedWeight("loud", SHAPE, (PAIR,), positions=1, damage=lambda tail: 100.0 * tail),
    PlannedWeight("mute", SHAPE, (PAIR,), positions=1, damage=lambda tail: 0.01 * tail),
)


def plan_of(trust: float) -> tuple[Choice, ...]:
    """A plan that is another one at each trust."""
    return (Choice(low_rank_candidate(WEIGHTS[0], PAIR, EVEN, 8 + round(trust * 16))),)


def judge_by(errors: Sequence[float]) -> tuple[PlanJudge, list[int | None]]:
    measured: list[int | None] = []
    by_rank = {8 + round(trust * 16): error for trust, error in zip(TRUSTS, errors, strict=True)}

    def error_of(choices: Sequence[Choice]) -> float:
        measured.append(choices[0].candidate.rank)
        return by_rank[choices[0].candidate.rank or 0]

    return PlanJudge(error_of), measured


@pytest.mark.parametrize(
    ("errors", "chosen", "tried"),
    [
        ((1.0, 2.0, 3.0, 0.1, 0.1), 1.0, (1.0, 0.75, 0.5)),  # half trust is worse: between it and full trust
        ((1.0, 0.8, 2.0, 0.1, 0.1), 0.75, (1.0, 0.75, 0.5)),
        ((1.0, 0.1, 0.6, 0.7, 0.1), 0.5, (1.0, 0.5, 0.25)),  # worse below it: no use in looking further
        ((1.0, 0.1, 0.6, 0.5, 0.4), 0.0, (1.0, 0.5, 0.25, 0.0)),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 0.0, (1.0, 0.5, 0.25, 0.0)),  # as good: what few feeds measured yields
        ((1.0, 0.9, 1.0 + (SAME - 1.0) / 2, 2.0, 1.0), 0.75, (1.0, 0.75, 0.5, 0.25)),  # flat: less may lie between
        ((1.0, 1.5, 1.0 + (SAME - 1.0) / 2, 2.0, 1.0), 0.5, (1.0, 0.75, 0.5, 0.25)),
        ((1.0, 0.1, 0.99 / FLAT, 2.0, 1.0), 0.5, (1.0, 0.5, 0.25)),
        ((math.nan, 0.5, 0.6, 0.7, 0.1), 0.5, (1.0, 0.5, 0.25)),
        ((0.6, math.nan, math.nan, 0.7, 0.1), 1.0, (1.0, 0.75, 0.5)),
        ((math.inf,) * 5, 1.0, (1.0, 0.5, 0.25, 0.0)),
        ((math.nan,) * 5, 1.0, (1.0, 0.5, 0.25, 0.0)),
    ],
)
def test_trust_is_lowered_for_as_long_as_that_does_no_harm(
    errors: tuple[float, ...], chosen: float, tried: tuple[float, ...]
) -> None:
    judge, measured = judge_by(errors)
    assert judge.choose(0.6, plan_of) == plan_of(chosen)
    assert len(measured) == len(tried)
    assert tuple(trial.trust for trial in judge.trials) == tried
    assert [trial.trust for trial in judge.trials if trial.chosen] == [chosen]
    assert {trial.keep for trial in judge.trials} == {0.6}
    assert not any(math.isnan(trial.error or 0.0) for trial in judge.trials)


def test_plans_that_are_alike_are_measured_once() -> None:
    judge, measured = judge_by((1.0,) * 5)
    judge.choose(0.5, lambda trust: plan_of(1.0))
    assert measured == [24]
    assert len(judge.trials) == 4


def judge_against(plain_errors: Mapping[int, float]) -> PlanJudge:
    """All plans have an error of 0.5 but those of plain forms, which have ranks beyond 24: theirs is given by rank."""

    def error_of(choices: Sequence[Choice]) -> float:
        rank = choices[0].candidate.rank
        assert rank is not None
        return 0.5 if rank <= 24 else plain_errors[rank]

    return PlanJudge(error_of)


def plain_of(trust: float) -> tuple[Choice, ...]:
    return (Choice(low_rank_candidate(WEIGHTS[0], PAIR, EVEN, 32 + round(trust * 16))),)


@pytest.mark.parametrize("plain_error", [0.5 / SAME * 1.001, 0.6, math.nan])
def test_plain_forms_that_do_no_less_harm_are_not_taken(plain_error: float) -> None:
    judge = judge_against({32: plain_error})
    assert judge.choose(0.6, plan_of, plain_of) == plan_of(0.0)
    last = [(trial.trust, trial.plain, trial.chosen) for trial in judge.trials[-2:]]
    assert last == [(0.0, False, True), (0.0, True, False)]
    assert judge.trials[-1].error == (math.inf if math.isnan(plain_error) else plain_error)


def test_plain_forms_that_do_clearly_less_harm_are_taken_at_their_own_trust() -> None:
    judge = judge_against({32: 0.5 / SAME / 1.001, 48: 0.3, 40: 0.1, 36: 0.2})
    assert judge.choose(0.6, plan_of, plain_of) == plain_of(0.5)
    assert [trial.trust for trial in judge.trials if trial.plain] == [1.0, 0.5, 0.25, 0.0]
    assert [(trial.trust, trial.plain) for trial in judge.trials if trial.chosen] == [(0.5, True)]


def test_a_plan_of_plain_forms_that_keeps_too_much_is_no_rival() -> None:
    judge = PlanJudge(lambda choices: 0.5)
    assert judge.choose(0.6, plan_of, lambda trust: None) == plan_of(0.0)
    assert not any(trial.plain for trial in judge.trials)


def test_settling_has_a_plan_of_plain_forms_as_rival() -> None:
    """Pivoted stores less than a pair at each rank, so the judge has to say that it is worse for it not to be taken."""
    weights = [replace(weight, forms=(PAIR, PIVOTED)) for weight in WEIGHTS]
    config = Config(budget=KeepParams(0.7), rank_multiple=8, objective="size")

    def forms_if(judged: Callable[[Sequence[Choice]], float]) -> set[str]:
        choices, _ = settle(weights, SPECTRA, config, lambda choices: 0.0, SILENT, plan_judge=PlanJudge(judged))
        return {choice.candidate.form for choice in choices}

    def has_pivoted(choices: Sequence[Choice]) -> bool:
        return any(choice.candidate.form == "pivoted" for choice in choices)

    assert "pivoted" in forms_if(lambda choices: 0.5)
    assert "pivoted" not in forms_if(lambda choices: 0.5 if has_pivoted(choices) else 0.1)


def test_a_single_trust_is_taken_unmeasured() -> None:
    def unused(choices: Sequence[Choice]) -> float:
        raise AssertionError("nothing is to be measured")

    judge = PlanJudge(unused, (0.25,))
    assert judge.choose(0.6, plan_of) == plan_of(0.25)
    assert [(trial.trust, trial.error, trial.chosen) for trial in judge.trials] == [(0.25, None, True)]


def test_the_last_error_as_good_as_the_least() -> None:
    assert last_good([1.0, 0.5, 0.51, 0.6]) == 2
    assert last_good([math.inf, 0.5]) == 1
    assert last_good([math.inf, math.inf]) == 0


@pytest.mark.parametrize("trust", TRUSTS)
def test_damage_is_blended_geometrically(trust: float) -> None:
    loud, mute = with_trust(WEIGHTS, trust)
    for tail in (0.0, 1e-9, 0.25, 1.0):
        assert loud.damage(tail) == pytest.approx(100.0**trust * tail)
        assert mute.damage(tail) == pytest.approx(0.01**trust * tail)


@pytest.mark.parametrize("trust", TRUSTS)
def test_what_can_not_be_run_is_not_tried_at_any_trust(trust: float) -> None:
    broken = PlannedWeight("broken", SHAPE, (PAIR,), positions=1, damage=lambda tail: math.inf if tail else 0.0)
    weight = with_trust([broken], trust)[0]
    assert weight.damage(0.0) == 0.0
    assert math.isinf(weight.damage(1e-6))


def test_blended_choices_get_their_own_damage_back() -> None:
    blended = with_trust(WEIGHTS, 0.5)
    choices = tuple(Choice(low_rank_candidate(weight, PAIR, EVEN, 16)) for weight in blended)
    own = in_own_unit(WEIGHTS, choices, {weight.name: EVEN for weight in WEIGHTS})
    assert [choice.candidate.error for choice in choices] == pytest.approx([7.5, 0.075])
    assert [choice.candidate.error for choice in own] == pytest.approx([75.0, 0.0075])
    assert [choice.candidate.rank for choice in own] == [16, 16]


def ranks_at(judge: PlanJudge | None) -> list[int | None]:
    config = Config(budget=KeepParams(0.7), rank_multiple=8, objective="size")
    choices, _ = settle(WEIGHTS, SPECTRA, config, lambda choices: 0.0, SILENT, plan_judge=judge)
    return [choice.candidate.rank for choice in choices]


def test_the_judge_decides_the_plan_of_a_share() -> None:
    """Full trust leaves the loud weight dense; without any, both weights look alike."""
    assert ranks_at(None) == ranks_at(PlanJudge(lambda choices: 0.0, (1.0,)))
    assert ranks_at(PlanJudge(lambda choices: 0.0, (1.0,)))[0] is None
    even = PlanJudge(lambda choices: float(any(choice.candidate.rank is None for choice in choices)))
    without = ranks_at(PlanJudge(lambda choices: 0.0, (0.0,)))
    assert None not in without
    assert ranks_at(even) == without
    assert even.trials[-1].chosen


def test_a_search_asks_the_judge_at_every_share() -> None:
    judge = PlanJudge(lambda choices: 0.0)
    config = Config(budget=MaxError(0.05), rank_multiple=8, objective="size")
    _, steps = settle(WEIGHTS, SPECTRA, config, lambda choices: 0.0, SILENT, plan_judge=judge)
    assert [step.keep for step in steps] == [trial.keep for trial in judge.trials if trial.chosen]
