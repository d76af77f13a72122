from __future__ import annotations

from dataclasses import replace

import pytest

from lowrank_onnx.candidates import Candidate, PlannedWeight, dense_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Alpha, Config, FixedRank, KeepMacs, Speedup
from lowrank_onnx.forms import PAIR
from lowrank_onnx.results import SearchStep
from lowrank_onnx.revision import Reviser
from lowrank_onnx.types import LatencyComparison, MatrixShape, Timing, Verdict

SHAPE = MatrixShape(1, 64, 64)
WEIGHTS = [
    PlannedWeight("gains", SHAPE, (PAIR,), 10, latency=lambda f, r: 1.0 if r is None else 0.5),
    PlannedWeight("gains nothing", SHAPE, (PAIR,), 10, latency=lambda f, r: 1.0),
]
LOW_RANK = Choice(Candidate("pair", 8, 8 * 128, None, 0.1))
DENSE = Choice(dense_candidate(WEIGHTS[0]), "reason")
STEP = SearchStep(0.5, 0.1, True, 1.6)


def verdict(speedup: float, *failures: str) -> Verdict:
    timing = Timing(1.0, 0.1, 10)
    latency = LatencyComparison(timing, timing, speedup, speedup * 0.99, speedup * 1.01, 0.95, 12)
    return Verdict((), latency, "feeds", False, 1, ("CPUExecutionProvider",), failures)


class Searches:
    def __init__(self, *choices: Choice) -> None:
        self.asked: list[float] = []
        self.starts: list[float] = []
        self.choices = choices

    def settle(self, budget: Speedup, start: float) -> tuple[tuple[Choice, ...], tuple[SearchStep, ...]]:
        self.asked.append(budget.speedup)
        self.starts.append(start)
        return self.choices, (STEP,)


def reviser(config: Config, searches: Searches | None = None) -> Reviser:
    return Reviser(config, lambda: WEIGHTS, (searches or Searches()).settle)


def test_weights_are_put_back_where_the_model_is_not_faster() -> None:
    revised = reviser(Config(budget=KeepMacs(0.5))).revise([LOW_RANK, LOW_RANK], [], verdict(0.9, "not faster"))
    assert revised is not None
    choices, steps = revised
    assert choices[0] == LOW_RANK
    assert choices[1].candidate.rank is None
    assert steps == ()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (Config(budget=FixedRank(8), objective="size"), verdict(0.9, "a gate")),
        (Config(budget=FixedRank(8)), verdict(0.9, "not faster", "a gate")),
        (Config(budget=FixedRank(8)), verdict(1.2, "a gate")),
        (Config(budget=FixedRank(8)), replace(verdict(0.9, "latency was not measured"), latency=None)),
        (Config(budget=Alpha(1.0), allow_larger=True), verdict(0.9, "not faster")),
    ],
    ids=["size", "a gate too", "a gate alone", "not timed", "asked for whatever it costs"],
)
def test_other_verdicts_stand(config: Config, found: Verdict) -> None:
    assert reviser(config).revise([LOW_RANK, LOW_RANK], [STEP], found) is None


def test_a_speedup_that_was_missed_is_asked_for_with_what_was_missing() -> None:
    searches = Searches(LOW_RANK, LOW_RANK)
    revised = reviser(Config(budget=Speedup(1.5)), searches).revise([LOW_RANK, DENSE], [STEP], verdict(1.2, "too slow"))
    assert revised == ((LOW_RANK, LOW_RANK), (STEP,))
    target = 1.5 * 1.5 / 1.2 * 1.02
    assert searches.asked == [pytest.approx(target)]
    assert searches.starts == [pytest.approx(1.0 - (1.0 - 1.0 / target) * 0.5 / (1.0 - 1.0 / 1.2))]


def test_a_speedup_that_can_not_be_had_ends_there() -> None:
    searches = Searches(DENSE, DENSE)
    found = verdict(1.4, "too slow")
    assert reviser(Config(budget=Speedup(1.5)), searches).revise([LOW_RANK, LOW_RANK], [STEP], found) is None
    assert len(searches.asked) == 1


def test_a_speedup_that_was_met_is_not_searched_again_for_another_failure() -> None:
    searches = Searches(LOW_RANK)
    assert reviser(Config(budget=Speedup(1.5)), searches).revise([LOW_RANK], [STEP], verdict(1.6, "a gate")) is None
    assert searches.asked == []
