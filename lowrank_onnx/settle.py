"""From the configured budget to one choice per weight: alone, together, or by search on what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from lowrank_onnx.candidates import Candidate, PlannedWeight, find_candidates
from lowrank_onnx.choose import NOT_NEEDED, Choice, CostName, choose_alone, choose_together, smallest_share
from lowrank_onnx.config import Alpha, Config, Energy, FixedRank, KeepMacs, KeepParams, MaxError, Speedup
from lowrank_onnx.errors import UsageError
from lowrank_onnx.progress import Progress
from lowrank_onnx.results import SearchStep
from lowrank_onnx.search import search_share, search_speedup
from lowrank_onnx.trust import PlanJudge, in_own_unit, with_trust
from lowrank_onnx.types import Spectrum

Settled = tuple[tuple[Choice, ...], tuple[SearchStep, ...]]

Race: TypeAlias = Callable[[Sequence[Choice]], tuple[float, float]]
"""Builds the model of some choices; its outputs' relative error and its measured speedup over the original."""


def settle(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    progress: Progress,
    *,
    race: Race | None = None,
    original_ms: float | None = None,
    start: float | None = None,
    plan_judge: PlanJudge | None = None,
) -> Settled:
    """Choose for every weight, and report the attempts where it took a search.

    With the objective "latency", ranks that were measured and aren't faster than dense are not taken, unless a share of
    parameters or MACs can't be reached without them.

    Parameters
    ----------
    weights, spectra : the weights, and the spectra by name of those that were factorized.
    config : its budget, objective and rank multiple are used.
    error_of : builds the model of some choices and measures its outputs' relative error; only called by a search.
    progress : receives the attempts.
    race, original_ms : for `Speedup` only: how an attempt is measured, and milliseconds of one run of the original.
    start : for `Speedup` only: the first share of the latency to try; None takes what the original has to lose.
    plan_judge : decides between several plans of a share by what they do to the outputs. None: measured damage is
        added up as it is.
    """
    budget = config.budget
    if isinstance(budget, (FixedRank, Alpha, Energy)):
        alone = (choose_alone(weight, spectra.get(weight.name), budget, config.rank_multiple) for weight in weights)
        return tuple(alone), ()
    if isinstance(budget, (KeepParams, KeepMacs)):
        cost: CostName = "macs" if isinstance(budget, KeepMacs) else "parameters"
        return _plan_at(weights, spectra, config, cost, plan_judge)(budget.share), ()
    if isinstance(budget, MaxError):
        return _settle_error(weights, spectra, budget, config, error_of, progress, plan_judge)
    if race is None or original_ms is None:
        raise ValueError("a speedup can't be settled without a race and the original's time")
    if start is None:
        start = _start(weights, budget, original_ms)
    return _settle_speedup(weights, spectra, budget, config, race, start, progress, plan_judge)


def _plan_at(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    config: Config,
    cost: CostName,
    plan_judge: PlanJudge | None,
) -> Callable[[float], tuple[Choice, ...]]:
    """The choices at a share of the cost."""

    def candidates_of(weight: PlannedWeight) -> Sequence[Candidate]:
        return find_candidates(weight, spectra[weight.name], config.rank_multiple)

    def choices_at(share: float, trust: float = 1.0) -> tuple[Choice, ...]:
        choices, _ = choose_together(
            with_trust(weights, trust),
            spectra,
            cost=cost,
            share=share,
            rank_multiple=config.rank_multiple,
            only_faster=config.objective == "latency",
        )
        return in_own_unit(weights, choices, candidates_of)

    if plan_judge is None:
        return choices_at
    return lambda share: plan_judge.choose(share, partial(choices_at, share)) if share < 1.0 else choices_at(share)


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
    spectra: Mapping[str, Spectrum],
    budget: MaxError,
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    progress: Progress,
    plan_judge: PlanJudge | None,
) -> Settled:
    cost = _search_cost(weights, config)
    choices_at = _plan_at(weights, spectra, config, cost, plan_judge)
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
    sites_ms = sum(weight.latency(None) for weight in weights if weight.latency is not None)
    return 1.0 - original_ms * (1.0 - 1.0 / budget.speedup) / sites_ms if sites_ms > 0.0 else 0.0


def _settle_speedup(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    budget: Speedup,
    config: Config,
    race: Race,
    start: float,
    progress: Progress,
    plan_judge: PlanJudge | None,
) -> Settled:
    choices_at = _plan_at(weights, spectra, config, "latency", plan_judge)
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
