"""From the configured budget to one choice per weight: alone, together, or by search on what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TypeAlias

from lowrank_onnx.candidates import DENSE, PlannedWeight, dense_candidate
from lowrank_onnx.choose import (
    NOT_NEEDED,
    ONLY_TOGETHER,
    Choice,
    CostName,
    Holds,
    always,
    choose_alone,
    choose_together,
    smallest_share,
)
from lowrank_onnx.config import (
    Alpha,
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
from lowrank_onnx.progress import Progress
from lowrank_onnx.results import SearchStep
from lowrank_onnx.search import most_attempts, search_drop, search_share, search_speedup
from lowrank_onnx.trust import PlanJudge, emphasised, in_own_unit, with_trust
from lowrank_onnx.types import Curves, MetricComparison

Settled = tuple[tuple[Choice, ...], tuple[SearchStep, ...]]

Race: TypeAlias = Callable[[Sequence[Choice]], tuple[float, float]]
"""Builds the model of some choices; its outputs' relative error and its measured speedup over the original."""

MeasureDrop: TypeAlias = Callable[[Sequence[Choice]], tuple[float, MetricComparison]]
"""Builds the model of some choices; its outputs' relative error and its task metric beside the original's."""


def settle(
    weights: Sequence[PlannedWeight],
    curves: Mapping[str, Curves],
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    progress: Progress,
    *,
    race: Race | None = None,
    drop_of: MeasureDrop | None = None,
    original_ms: float | None = None,
    start: float | None = None,
    holds: Holds = always,
    plan_judge: PlanJudge | None = None,
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
    drop_of : for `MaxDrop` only: builds the model of some choices; its outputs' error and its task metric.
    race, original_ms : for `Speedup` only: how an attempt is measured, and milliseconds of one run of the original.
    start : for `Speedup` only: the first share of the latency to try; None takes what the original has to lose.
    holds : whether a candidate that is about to be chosen can be written.
    plan_judge : decides between several plans of a share by what they do to the outputs. None: measured damage is
        added up as it is.
    """
    budget = config.budget
    if isinstance(budget, (FixedRank, Alpha, Energy)):
        alone = (choose_alone(weight, curves.get(weight.name, {}), budget, config.rank_multiple) for weight in weights)
        checked = tuple(_checked(weight, choice, holds) for weight, choice in zip(weights, alone, strict=True))
        return _whole_bundles(weights, checked), ()
    # A search asks again for the share that it settles on: that plan isn't judged twice.
    choices_at = cache(partial(_choices_at, weights, curves, config, holds, plan_judge))
    if isinstance(budget, KeepParams | KeepBytes | KeepMacs):
        return choices_at(_limited(budget), budget.share), ()
    if isinstance(budget, MaxError):
        return _settle_error(weights, budget, config, error_of, choices_at, progress)
    if isinstance(budget, MaxDrop):
        if drop_of is None:
            raise ValueError("a drop can't be settled without a metric")
        return _settle_drop(weights, budget, config, drop_of, choices_at, progress)
    if race is None or original_ms is None:
        raise ValueError("a speedup can't be settled without a race and the original's time")
    if start is None:
        start = _start(weights, budget, original_ms)
    return _settle_speedup(weights, budget, config, race, start, partial(choices_at, "latency"), progress)


def _limited(budget: KeepParams | KeepBytes | KeepMacs) -> CostName:
    """The figure of which a budget keeps a share."""
    if isinstance(budget, KeepMacs):
        return "macs"
    return "bytes" if isinstance(budget, KeepBytes) else "parameters"


_SHARE_FLAGS: Mapping[CostName, str] = {
    "parameters": "--keep-params",
    "bytes": "--keep-bytes",
    "macs": "--keep-macs",
}


def _choices_at(
    weights: Sequence[PlannedWeight],
    curves: Mapping[str, Curves],
    config: Config,
    holds: Holds,
    plan_judge: PlanJudge | None,
    cost: CostName,
    share: float,
) -> tuple[Choice, ...]:
    """The choices at a share of the cost."""

    def planned(trust: float, weights: Sequence[PlannedWeight]) -> tuple[tuple[Choice, ...], bool]:
        choices, plan = choose_together(
            emphasised(with_trust(weights, trust)),
            curves,
            cost=cost,
            share=share,
            rank_multiple=config.rank_multiple,
            only_faster=config.objective == "latency",
            holds=holds,
        )
        return in_own_unit(weights, choices, curves), plan.feasible

    def trusting(trust: float) -> tuple[Choice, ...]:
        return planned(trust, weights)[0]

    def plain_alone(trust: float) -> tuple[Choice, ...] | None:
        if all(len(weight.forms) == 1 for weight in weights):
            return None
        choices, feasible = planned(trust, [replace(weight, forms=weight.forms[:1]) for weight in weights])
        return choices if feasible else None

    return trusting(1.0) if plan_judge is None or share >= 1.0 else plan_judge.choose(share, trusting, plain_alone)


def _checked(weight: PlannedWeight, choice: Choice, holds: Holds) -> Choice:
    """The choice, or dense with the reason where it can't be written."""
    candidate = choice.candidate
    if candidate.rank is None or holds(weight, candidate):
        return choice
    reason = f"{candidate.form} at rank {candidate.rank} would round too much in the stored dtype"
    return Choice(dense_candidate(weight), reason)


def _whole_bundles(weights: Sequence[PlannedWeight], choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices, or dense where a form that takes several weights at one rank got others, or not all of them."""
    members: dict[str, list[int]] = {}
    for index, (weight, choice) in enumerate(zip(weights, choices, strict=True)):
        if choice.candidate.rank is not None and (bundle := weight.form(choice.candidate.form).bundle) is not None:
            members.setdefault(bundle, []).append(index)
    settled = list(choices)
    for indices in members.values():
        size = weights[indices[0]].form(choices[indices[0]].candidate.form).bundle_size
        if len(indices) != size or len({choices[index].candidate.rank for index in indices}) > 1:
            for index in indices:
                settled[index] = Choice(dense_candidate(weights[index]), ONLY_TOGETHER)
    return tuple(settled)


def models_searched(config: Config) -> int:
    """How many models at most a budget's search judges by their outputs, and so may favour for what was chance."""
    return most_attempts(config.preset.resolution) if isinstance(config.budget, MaxError | MaxDrop) else 1


def _floor(weights: Sequence[PlannedWeight], config: Config, cost: CostName) -> float:
    only_faster = config.objective == "latency"
    return smallest_share(weights, cost=cost, rank_multiple=config.rank_multiple, only_faster=only_faster)


def check_feasible(weights: Sequence[PlannedWeight], config: Config) -> None:
    """Refuse a share that no choice of ranks can reach, before anything is factorized (`UsageError`)."""
    budget = config.budget
    if not isinstance(budget, KeepParams | KeepBytes | KeepMacs):
        return
    cost = _limited(budget)
    floor = smallest_share(weights, cost=cost, rank_multiple=config.rank_multiple)
    given = ", with the ranks that [[site]] gives" if any(weight.rank is not None for weight in weights) else ""
    if weights and budget.share < floor:
        raise UsageError(
            f"{_SHARE_FLAGS[cost]} {budget.share:g}: the smallest share that these weights can be brought to is "
            f"{floor:.3f}{given}; ask for at least that, or for smaller ranks with --rank-multiple 1"
        )


def _kept(share: float, cost: CostName) -> str:
    return f"{100 * share:.0f} % of the {cost} kept"


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
    with progress.stage("searching", most_attempts(config.preset.resolution)) as stage:

        def error_at(share: float) -> float:
            error = error_of(choices_at(share))
            stage.advance(detail=f"{_kept(share, cost)}: relative error {error:.3g}")
            return error

        share, steps = search_share(
            error_at, budget.error, floor=_floor(weights, config, cost), resolution=config.preset.resolution
        )
    if share is not None:
        return choices_at(share), steps
    reason = f"no share tried kept the outputs' relative error within {budget.error:g}"
    return _all_dense(weights, choices_at(1.0), reason), steps


def _settle_drop(
    weights: Sequence[PlannedWeight],
    budget: MaxDrop,
    config: Config,
    drop_of: MeasureDrop,
    plan_at: Callable[[CostName, float], tuple[Choice, ...]],
    progress: Progress,
) -> Settled:
    cost = _search_cost(weights, config)
    choices_at = partial(plan_at, cost)
    with progress.stage("searching", most_attempts(config.preset.resolution)) as stage:

        def drop_at(share: float) -> tuple[float, MetricComparison]:
            error, metric = drop_of(choices_at(share))
            stage.advance(detail=f"{_kept(share, cost)}: drop {metric.drop:.3g}, relative error {error:.3g}")
            return error, metric

        share, steps = search_drop(
            drop_at, budget.drop, floor=_floor(weights, config, cost), resolution=config.preset.resolution
        )
    if share is not None:
        return choices_at(share), steps
    reason = f"no share tried kept the metric's drop within {budget.drop:g}"
    return _all_dense(weights, choices_at(1.0), reason), steps


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
            stage.advance(detail=f"{_kept(share, 'latency')}: {speedup:.3g}x, relative error {error:.3g}")
            return error, speedup

        share, steps = search_speedup(race_at, budget.speedup, floor=floor, start=start)
    if share is not None:
        return choices_at(share), steps
    reason = f"no model tried was {budget.speedup:g} times as fast"
    return _all_dense(weights, choices_at(1.0), reason), steps


def _all_dense(weights: Sequence[PlannedWeight], choices: Sequence[Choice], reason: str) -> tuple[Choice, ...]:
    """Leave every weight as it is. Those that could have shrunk get the search's reason; at a share of 1 that is also
    a weight that a rank seems to reproduce without loss.
    """
    return tuple(
        Choice(dense_candidate(weight), reason if not choice.reason or choice.reason == NOT_NEEDED else choice.reason)
        for weight, choice in zip(weights, choices, strict=True)
    )
