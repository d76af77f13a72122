from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import choose_alone, choose_together, ranks_to_factor, smallest_share
from lowrank_onnx.config import Alpha, Budget, Energy, FixedRank, KeepParams
from lowrank_onnx.forms import MATRIX, PAIR
from lowrank_onnx.types import Curves, MatrixShape, Spectrum

SQUARE = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), positions=10)


def spectrum(values: np.ndarray) -> Curves:
    return {MATRIX: Spectrum(values[None, :], float(np.sum(values**2)))}


def test_rank_is_taken_as_asked() -> None:
    choice = choose_alone(SQUARE, spectrum(np.ones(64)), FixedRank(20), None)
    assert choice.candidate.rank == 20
    assert choice.reason == ""


def test_rank_is_rounded_up_to_the_multiple() -> None:
    assert choose_alone(SQUARE, spectrum(np.ones(64)), FixedRank(17), 8).candidate.rank == 24


def test_alpha_is_a_share_of_the_smaller_side_rounded_up() -> None:
    weight = PlannedWeight("w", MatrixShape(1, 100, 33), (PAIR,), None)
    assert choose_alone(weight, spectrum(np.ones(33)), Alpha(0.4), None).candidate.rank == 14


def test_a_rank_that_saves_nothing_stays_dense_with_the_reason() -> None:
    assert ranks_to_factor(SQUARE, FixedRank(32), None) == {}
    choice = choose_alone(SQUARE, {}, FixedRank(32), None)
    assert choice.candidate.rank is None
    assert choice.reason == "rank 32 would not make it smaller: factors of 64 x 64 save weights up to rank 31"


def test_energy_takes_the_smallest_rank_that_keeps_it() -> None:
    values = np.array([10.0] * 4 + [0.1] * 60)
    choice = choose_alone(SQUARE, spectrum(values), Energy(0.99), 1)
    assert choice.candidate.rank == 4


def test_energy_out_of_reach_stays_dense_and_says_what_the_largest_rank_keeps() -> None:
    choice = choose_alone(SQUARE, spectrum(np.ones(64)), Energy(0.9), 8)
    assert choice.candidate.rank is None
    assert choice.reason == (
        "energy 0.9 needs a rank above 24, where factors stop saving weights (rank 24 keeps 0.3750)"
    )


def test_tiny_weight_is_dense_under_every_budget() -> None:
    tiny = PlannedWeight("w", MatrixShape(1, 2, 2), (PAIR,), None)
    assert ranks_to_factor(tiny, KeepParams(0.5), None) == {}
    assert choose_alone(tiny, {}, Energy(0.9), None).reason == "too small: no rank of 2 x 2 saves weights"


def test_multiple_beyond_the_largest_useful_rank_is_named() -> None:
    choice = choose_alone(SQUARE, {}, Energy(0.5), 40)
    assert choice.reason == "no multiple of 40 is at most 31, the largest rank that saves weights"


def test_together_spends_the_budget_where_the_spectrum_is_flat() -> None:
    steep = PlannedWeight("steep", MatrixShape(1, 64, 64), (PAIR,), 10)
    flat = PlannedWeight("flat", MatrixShape(1, 64, 64), (PAIR,), 10)
    spectra = {"steep": spectrum(0.5 ** np.arange(64.0)), "flat": spectrum(np.ones(64))}
    choices, plan = choose_together([steep, flat], spectra, cost="parameters", share=0.75, rank_multiple=8)
    assert plan.feasible
    assert choices[0].candidate.rank == 8 or choices[0].candidate.rank == 16
    assert choices[1].candidate.rank is None
    assert choices[1].reason == "the budget is met with less damage elsewhere"


def test_unknown_macs_leave_the_weight_dense_and_out_of_the_budget() -> None:
    hidden = PlannedWeight("hidden", MatrixShape(1, 64, 64), (PAIR,), None)
    spectra = {"w": spectrum(np.ones(64)), "hidden": spectrum(np.ones(64))}
    choices, plan = choose_together([SQUARE, hidden], spectra, cost="macs", share=0.5, rank_multiple=8)
    assert plan.cost <= 0.5 * 10 * 64 * 64
    assert choices[1].candidate.rank is None
    assert choices[1].reason.startswith("its MACs are not known")


def test_infeasible_share_is_reported() -> None:
    _, plan = choose_together([SQUARE], {"w": spectrum(np.ones(64))}, cost="parameters", share=0.1, rank_multiple=8)
    assert not plan.feasible


@pytest.mark.parametrize("budget", [KeepParams(0.5), Energy(0.5)])
def test_planned_budgets_factorize_at_the_largest_useful_multiple(budget: Budget) -> None:
    assert ranks_to_factor(SQUARE, budget, 8) == {MATRIX: 24}


def test_larger_factors_are_made_only_when_allowed_and_never_beyond_the_exact_rank() -> None:
    assert ranks_to_factor(SQUARE, Alpha(1.0), None) == {}
    assert ranks_to_factor(SQUARE, Alpha(1.0), None, allow_larger=True) == {MATRIX: 64}
    assert ranks_to_factor(SQUARE, FixedRank(1000), None, allow_larger=True) == {MATRIX: 64}
    assert choose_alone(SQUARE, spectrum(np.ones(64)), FixedRank(1000), None).candidate.rank == 64


def timed(name: str, dense_ms: float, each_ms: float, noise: float = 0.0) -> PlannedWeight:
    """A 64 x 64 weight that takes `dense_ms` dense, and `each_ms` for each rank."""
    return PlannedWeight(
        name,
        MatrixShape(1, 64, 64),
        (PAIR,),
        10,
        latency=lambda f, r: dense_ms if r is None else r * each_ms,
        noise=noise,
    )


FLAT = spectrum(np.ones(64))


def test_latency_is_a_cost_like_any_other() -> None:
    weights = [timed("quick", 4.0, 0.125), timed("slow", 4.0, 0.25)]
    spectra = {"quick": FLAT, "slow": FLAT}
    choices, plan = choose_together(weights, spectra, cost="latency", share=0.625, rank_multiple=8)
    assert [choice.candidate.rank for choice in choices] == [8, None]  # 8 ranks of "quick" cost as much as 4 of "slow"
    assert plan.cost == 5_000_000
    assert smallest_share(weights, cost="latency", rank_multiple=8) == (1.0 + 2.0) / 8.0
    dense, _ = choose_together(weights, spectra, cost="latency", share=1.0, rank_multiple=8)
    assert all(choice.candidate.rank is None for choice in dense)


def test_weights_without_latency_stay_dense_in_a_plan_for_latency() -> None:
    weights = [timed("quick", 4.0, 0.125), replace(SQUARE, unmeasured="no reason"), replace(SQUARE, name="never asked")]
    spectra = {weight.name: FLAT for weight in weights}
    choices, _ = choose_together(weights, spectra, cost="latency", share=0.5, rank_multiple=8)
    assert [choice.candidate.rank for choice in choices] == [16, None, None]
    assert [choice.reason for choice in choices] == [
        "",
        "its latency is not known: no reason",
        "its latency is not known: it was not measured",
    ]


def test_ranks_that_are_not_faster_are_dropped_with_the_reason() -> None:
    weights = [timed("quick", 4.0, 0.125), timed("never", 0.42, 0.125), timed("noisy", 4.0, 0.25, noise=0.7)]
    spectra = {weight.name: FLAT for weight in weights}
    choices, _ = choose_together(weights, spectra, cost="parameters", share=0.85, rank_multiple=8, only_faster=True)
    assert [choice.candidate.rank for choice in choices] == [16, None, None]
    assert choices[1].reason == "no rank is measurably faster here than dense (0.42 ms)"
    assert choices[2].reason == "no rank is measurably faster here than dense (4 ms)"


def test_a_share_that_needs_slow_ranks_gets_them() -> None:
    weights = [timed("quick", 4.0, 0.125), timed("never", 0.42, 0.125)]
    spectra = {weight.name: FLAT for weight in weights}
    without, _ = choose_together(weights, spectra, cost="parameters", share=0.7, rank_multiple=8, only_faster=True)
    assert without[1].candidate.rank is None
    choices, plan = choose_together(weights, spectra, cost="parameters", share=0.5, rank_multiple=8, only_faster=True)
    assert plan.feasible
    assert choices[1].candidate.rank is not None


def test_the_smallest_share_of_latency_is_feasible() -> None:
    weights = [timed("a", 4.1, 0.123), timed("b", 3.3, 0.177), timed("c", 0.1, 1.0)]
    spectra = {weight.name: FLAT for weight in weights}
    floor = smallest_share(weights, cost="latency", rank_multiple=8, only_faster=True)
    choices, plan = choose_together(weights, spectra, cost="latency", share=floor, rank_multiple=8, only_faster=True)
    assert plan.feasible
    assert [choice.candidate.rank for choice in choices] == [8, 8, None]
    assert smallest_share([weights[2]], cost="latency", rank_multiple=8, only_faster=True) == 1.0
