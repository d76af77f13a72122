from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lowrank_onnx.candidates import Candidate, PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Budget, Config, Gates, KeepBytes, KeepMacs, KeepParams, MaxDrop, MaxError, Speedup
from lowrank_onnx.forms import PAIR
from lowrank_onnx.metric import Metric
from lowrank_onnx.outcome import find_reached
from lowrank_onnx.results import Reached, Totals
from lowrank_onnx.types import MatrixShape, Verdict
from tests.report.samples import LATENCY, METRIC, REWRITTEN, VERDICT

BEFORE = Totals(parameters=200, site_parameters=200, macs=1000, file_bytes=900)
AFTER = Totals(parameters=100, site_parameters=100, macs=400, file_bytes=500)
SITES = (
    replace(REWRITTEN, weight="a", dtype="float32", parameters_before=100, parameters_after=25, predicted_error=0.3),
    replace(REWRITTEN, weight="b", dtype="float16", parameters_before=100, parameters_after=75, predicted_error=0.4),
)
CHOICES = (Choice(Candidate("pair", 8, 25, None, 0.09)), Choice(Candidate("pair", 16, 75, None, 0.16)))
WEIGHTS = tuple(PlannedWeight(name, MatrixShape(1, 10, 10), (PAIR,), None) for name in "ab")
TIMED = tuple(replace(weight, latency=lambda form, rank: 1.0 if rank is None else rank / 32) for weight in WEIGHTS)


def rows(
    budget: Budget, verdict: Verdict | None = VERDICT, weights: Sequence[PlannedWeight] = WEIGHTS, **options: object
) -> dict[str, Reached]:
    metric = Metric("m", lambda predict: 1.0)
    config = replace(Config(budget=budget, metric=metric), **options)  # type: ignore[arg-type]
    return {row.figure: row for row in find_reached(config, BEFORE, AFTER, SITES, weights, CHOICES, verdict)}


@pytest.mark.parametrize(
    ("budget", "figure", "kept"),
    [
        (KeepParams(0.55), "share of the parameters", 0.5),
        (KeepBytes(0.55), "share of the bytes", (25 * 4 + 75 * 2) / 600),
        (KeepMacs(0.55), "share of the MACs", 0.4),
    ],
)
def test_a_share_is_kept_as_planned(budget: Budget, figure: str, kept: float) -> None:
    found = rows(budget)[figure]
    assert (found.asked, found.predicted, found.reached) == (0.55, kept, kept)
    assert list(rows(budget, verdict=None)) == [figure]


def test_errors_of_the_weights_add_up_in_squares() -> None:
    found = rows(MaxError(0.6))["relative error of the outputs"]
    assert found.asked == 0.6
    assert found.predicted == pytest.approx(0.5)
    assert found.reached == VERDICT.relative_error
    assert rows(KeepParams(0.5))["relative error of the outputs"].asked is None
    assert rows(KeepParams(0.5), gates=Gates(max_error=0.2))["relative error of the outputs"].asked == 0.2


def test_a_speed_is_predicted_where_weights_were_timed() -> None:
    found = rows(Speedup(1.4), weights=TIMED)["speed, times the original's"]
    saved = (1.0 - 8 / 32) + (1.0 - 16 / 32)
    assert found.asked == 1.4
    assert found.predicted == pytest.approx(3.1 / (3.1 - saved))
    assert found.reached == LATENCY.speedup
    assert rows(Speedup(1.4))["speed, times the original's"].predicted is None


def test_saving_more_than_there_is_predicts_nothing() -> None:
    slow = [replace(weight, latency=lambda form, rank: 9.0 if rank is None else 0.0) for weight in WEIGHTS]
    assert rows(Speedup(1.4), weights=slow)["speed, times the original's"].predicted is None


def test_a_drop_is_measured_not_predicted() -> None:
    found = rows(MaxDrop(0.01), replace(VERDICT, metric=METRIC))["drop of the metric"]
    assert (found.asked, found.predicted) == (0.01, None)
    assert math.isclose(found.reached, 0.001)


def test_nothing_rewritten_has_reached_nothing() -> None:
    assert find_reached(Config(), BEFORE, None, (), (), (), None) == ()
