"""From the configured budget to one choice per weight: alone, together, or by search on measured error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import NOT_NEEDED, Choice, CostName, choose_alone, choose_together, smallest_share
from lowrank_onnx.config import Alpha, Config, Energy, FixedRank, KeepMacs, KeepParams, MaxError
from lowrank_onnx.errors import UsageError
from lowrank_onnx.progress import Progress
from lowrank_onnx.results import SearchStep
from lowrank_onnx.search import search_share
from lowrank_onnx.types import Spectrum

Settled = tuple[tuple[Choice, ...], tuple[SearchStep, ...]]


def settle(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    config: Config,
    error_of: Callable[[Sequence[Choice]], float],
    progress: Progress,
) -> Settled:
    """Choose for every weight, and report the attempts where it took a search.

    Parameters
    ----------
    weights, spectra : the weights, and the spectra by name of those that were factorized.
    config : its budget, objective and rank multiple are used.
    error_of : builds the model of some choices and measures its outputs' relative error; only called by a search.
    progress : receives the attempts.
    """
    budget = config.budget
    if isinstance(budget, (FixedRank, Alpha, Energy)):
        alone = (choose_alone(weight, spectra.get(weight.name), budget, config.rank_multiple) for weight in weights)
        return tuple(alone), ()
    if isinstance(budget, (KeepParams, KeepMacs)):
        return _settle_share(weights, spectra, budget, config.rank_multiple), ()
    return _settle_error(weights, spectra, budget, config, error_of, progress)


def _settle_share(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    budget: KeepParams | KeepMacs,
    rank_multiple: int | None,
) -> tuple[Choice, ...]:
    cost: CostName = "macs" if isinstance(budget, KeepMacs) else "parameters"
    return choose_together(weights, spectra, cost=cost, share=budget.share, rank_multiple=rank_multiple)[0]


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
) -> Settled:
    seen = any(weight.positions is not None for weight in weights)
    cost: CostName = "macs" if config.objective == "latency" and seen else "parameters"

    def choices_at(share: float) -> tuple[Choice, ...]:
        return choose_together(weights, spectra, cost=cost, share=share, rank_multiple=config.rank_multiple)[0]

    with progress.stage("searching", None) as stage:

        def error_at(share: float) -> float:
            error = error_of(choices_at(share))
            stage.advance(detail=f"{share:.0%} of the {cost} kept: relative error {error:.3g}")
            return error

        floor = smallest_share(weights, cost=cost, rank_multiple=config.rank_multiple)
        share, steps = search_share(error_at, budget.error, floor=floor)
    if share is not None:
        return choices_at(share), steps
    reason = f"no share tried kept the outputs' relative error within {budget.error:g}"
    return tuple(_dense(choice, reason) for choice in choices_at(1.0)), steps


def _dense(choice: Choice, reason: str) -> Choice:
    """At share 1.0 every choice is dense; those that could have shrunk get the search's reason."""
    return Choice(choice.candidate, reason) if choice.reason == NOT_NEEDED else choice
