"""From the configured budget to one choice per weight: alone, together, or by search on what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from lowrank_onnx.candidates import DENSE, PlannedWeight, dense_candidate
from lowrank_onnx.choose import (
    NOT_NEEDED,
    Choice,
    CostName,
    Holds,
    always,
    choose_alone,
    choose_together,
    smallest_share,
)
from lowrank_onnx.config import Alpha, Config, Energy, FixedRank, KeepMacs, KeepParams, MaxError, Speedup
from lowrank_onnx.errors import UsageError
from lowrank_onnx.progress import Progress
from lowrank_onnx.results import SearchStep
from lowrank_onnx.search import search_share, search_speedup
from lowrank_onnx.types import Curves

Settled = tuple[tuple[Choice, ...], tuple[SearchStep, ...]]

Race: TypeAlias = Callable[[Sequence[Choice]], tuple[float, float]]
"""Builds the model of some choices; its outputs' relative error and its measured speedup over the original."""


def settle(
    weights: Sequence[PlannedWeight],
    curves: Mapping[str, Curves],
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    progress: Progress,
    *,
    race: Race | None = None,
    original_ms: float | None = None,
    start: float | None = None,
    holds: Holds = always,
) -> Settled:
    """Choose for every weight, and report the attempts where it took a search.

    With the objective "latency", ranks that were measured and aren't faster than dense are not taken, unless a share of
    parameters or MACs can't be reached without them.

    Parameters
    ----------
    weights, curves : the weights, and the errors by rank, by name, of those that were factorized.
    config : its budget, objective and rank multiple are used.
    error_of : builds the model of some choices and measures its outputs' relative error; only called by a search.
    progress : receives the attempts.
    race, original_ms : for `Speedup` only: how an attempt is measured, and milliseconds of one run of the original.
    start : for `Speedup` only: the first share of the latency to try; None takes what the original has to lose.
    holds : whether a candidate that is about to be chosen can be written.
    """
    budget = config.budget
    if isinstance(budget, (FixedRank, Alpha, Energy)):
        alone = (choose_alone(weight, curves.get(weight.name, {}), budget, config.rank_multiple) for weight in weights)
        return tuple(_checked(weight, choice, holds) for weight, choice in zip(weights, alone, strict=True)), ()
    choices_at = partial(_choices_at, weights, curves, config, holds)
    if isinstance(budget, (KeepParams, KeepMacs)):
        cost: CostName = "macs" if isinstance(budget, KeepMacs) else "parameters"
        return choices_at(cost, budget.share), ()
    if isinstance(budget, MaxError):
        return _settle_error(weights, budget, config, error_of, choices_at, progress)
    if race is None or original_ms is None:
        raise ValueError("a speedup can't be settled without a race and the original's time")
    if start is None:
        start = _start(weights, budget, original_ms)
    return _settle_speedup(weights, budget, config, race, start, partial(choices_at, "latency"), progress)


def _choices_at(
    weights: Sequence[PlannedWeight],
    curves: Mapping[str, Curves],
    config: Config,
    holds: Holds,
    cost: CostName,
    share: float,
) -> tuple[Choice, ...]:
    """The choices at a share of the cost."""
    return choose_together(
        weights,
        curves,
        cost=cost,
        share=share,
        rank_multiple=config.rank_multiple,
        only_faster=config.objective == "latency",
        holds=holds,
    )[0]


def _checked(weight: PlannedWeight, choice: Choice, holds: Holds) -> Choice:
    """The choice, or dense with the reason where it can't be written."""
    candidate = choice.candidate
    if candidate.rank is None or holds(weight, candidate):
        return choice
    reason = f"{candidate.form} at rank {candidate.rank} would round too much in the stored dtype"
    return Choice(dense_candidate(weight), reason)


def _floor(weights: Sequence[PlannedWeight], config: Config, cost: CostName) -> float:
    only_faster = config.objective == "latency"
    return smallest_share(weights, cost=cost, rank_multiple=config.rank_multiple, only_faster=only_faster)


def check_feasible(weights: Sequence[PlannedWeight], config: Config) -> None:
    """Refuse a share that no choice of ranks can reach, before anything is factorized (`UsageError`)."""
    budget = config.budget
    if not isinstance(budget, KeepParams | KeepMacs):
        return
    cost: CostName = "macs" if isinstance(budget, KeepMacs) else "parameters"
    floor = smallest_share(weights, cost=cost, rank_multiple=config.rank_multiple)
    if weights and budget.share < floor:
        flag = "--keep-macs" if cost == "macs" else "--keep-params"
        raise UsageError(
            f"{flag} {budget.share:g}: the smallest share that these weights can be brought to is {floor:.3f}; "
            f"ask for at least that, or for smaller ranks with --rank-multiple 1"
        )


def _settle_error(
    weights: Sequence[PlannedWeight],
    budget: MaxError,
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    plan_at: Callable[[CostName, float], tuple[Choice, ...]],
    progress: Progress,
) -> Settled:
    cost = _search_cost(weights, config)
    choices_at = partial(plan_at, cost)
    with progress.stage("searching", None) as stage:

        def error_at(share: float) -> float:
            error = error_of(choices_at(share))
            stage.advance(detail=f"{share:.0%} of the {cost} kept: relative error {error:.3g}")
            return error

        share, steps = search_share(error_at, budget.error, floor=_floor(weights, config, cost))
    if share is not None:
        return choices_at(share), steps
    reason = f"no share tried kept the outputs' relative error within {budget.error:g}"
    return tuple(_dense(choice, reason) for choice in choices_at(1.0)), steps


def _search_cost(weights: Sequence[PlannedWeight], config: Config) -> CostName:
    """What a search minimises: the best measure of the objective that there is."""
    if config.objective == "latency" and any(weight.latency is not None for weight in weights):
        return "latency"
    if config.objective == "latency" and any(weight.positions is not None for weight in weights):
        return "macs"
    return "parameters"


def _start(weights: Sequence[PlannedWeight], budget: Speedup, original_ms: float) -> float:
    """The share at which the sites save T - T/S of the original's T milliseconds, if the model gains what they do."""
    sites_ms = sum(weight.latency(DENSE, None) for weight in weights if weight.latency is not None)
    return 1.0 - original_ms * (1.0 - 1.0 / budget.speedup) / sites_ms if sites_ms > 0.0 else 0.0


def _settle_speedup(
    weights: Sequence[PlannedWeight],
    budget: Speedup,
    config: Config,
    race: Race,
    start: float,
    choices_at: Callable[[float], tuple[Choice, ...]],
    progress: Progress,
) -> Settled:
    floor = _floor(weights, config, "latency")
    if floor >= 1.0:
        return choices_at(1.0), ()
    with progress.stage("searching", None) as stage:

        def race_at(share: float) -> tuple[float, float]:
            error, speedup = race(choices_at(share))
            stage.advance(detail=f"{share:.0%} of the latency kept: {speedup:.3g}x, relative error {error:.3g}")
            return error, speedup

        share, steps = search_speedup(race_at, budget.speedup, floor=floor, start=start)
    if share is not None:
        return choices_at(share), steps
    reason = f"no model tried was {budget.speedup:g} times as fast"
    return tuple(_dense(choice, reason) for choice in choices_at(1.0)), steps


def _dense(choice: Choice, reason: str) -> Choice:
    """At share 1.0 every choice is dense; those that could have shrunk get the search's reason."""
    return Choice(choice.candidate, reason) if choice.reason == NOT_NEEDED else choice
