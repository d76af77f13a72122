from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Budget, Config, Energy, FixedRank, KeepMacs, KeepParams, MaxError
from lowrank_onnx.errors import UsageError
from lowrank_onnx.progress import SILENT
from lowrank_onnx.settle import Settled, check_feasible, settle
from lowrank_onnx.types import MatrixShape, Spectrum

WEIGHTS = [PlannedWeight(name, MatrixShape(1, 64, 64), "pair", positions=10) for name in ("steep", "flat")]
VALUES = {"steep": 0.5 ** np.arange(64.0), "flat": np.ones(64)}
SPECTRA = {name: Spectrum(v[None], float(np.sum(v**2))) for name, v in VALUES.items()}


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
    blind = [PlannedWeight(w.name, w.shape, w.form, positions=None) for w in WEIGHTS]
    choices, _ = run(MaxError(0.4), lambda choices: 1.0 - kept(choices), blind)
    assert 0.6 <= kept(choices) < 0.7


def test_no_weights_settle_to_nothing() -> None:
    assert run(MaxError(0.05), lambda choices: 0.0, [])[0] == ()
