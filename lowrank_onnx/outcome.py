"""What was asked of a compression beside what the plan predicted and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank_onnx.candidates import DENSE, PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config, KeepBytes, KeepMacs, KeepParams, MaxError, Speedup
from lowrank_onnx.results import Reached, SiteResult, Totals
from lowrank_onnx.types import Verdict, numpy_dtype


def find_reached(
    config: Config,
    before: Totals,
    after: Totals | None,
    sites: Sequence[SiteResult],
    weights: Sequence[PlannedWeight],
    choices: Sequence[Choice],
    verdict: Verdict | None,
) -> tuple[Reached, ...]:
    """One row for each figure that was asked for, predicted or measured; none where nothing was rewritten.

    `weights` are those of the plan, with the latency that was measured where it was, in the order of `choices`.
    """
    if after is None:
        return ()
    budget = config.budget
    rows: list[Reached] = []
    if isinstance(budget, KeepParams | KeepBytes):
        figure, kept = "share of the parameters", after.site_parameters / before.site_parameters
        if isinstance(budget, KeepBytes):
            figure, kept = "share of the bytes", _bytes_kept(sites)
        rows.append(Reached(figure, budget.share, kept, kept))
    if isinstance(budget, KeepMacs) and before.macs and after.macs is not None:
        kept = after.macs / before.macs
        rows.append(Reached("share of the MACs", budget.share, kept, kept))
    if verdict is None:
        return tuple(rows)
    asked_error = allowed_error(config)
    rows.append(Reached("relative error of the outputs", asked_error, _error(sites, choices), verdict.relative_error))
    if verdict.metric is not None:
        rows.append(Reached("drop of the metric", config.required_drop, None, verdict.metric.drop))
    if verdict.latency is not None:
        asked_speed = budget.speedup if isinstance(budget, Speedup) else None
        predicted = _speed(weights, choices, verdict.latency.original.median_ms)
        rows.append(Reached("speed, times the original's", asked_speed, predicted, verdict.latency.speedup))
    return tuple(rows)


def allowed_error(config: Config) -> float | None:
    """The largest relative error of the outputs that was asked for, as budget or gate."""
    return config.budget.error if isinstance(config.budget, MaxError) else config.gates.max_error


def _bytes_kept(sites: Sequence[SiteResult]) -> float:
    """Of the stored weights, each of which counts once."""
    stored = {site.weight: (site, numpy_dtype(site.dtype).itemsize) for site in sites}.values()
    before = sum(site.parameters_before * size for site, size in stored)
    return sum(site.parameters_after * size for site, size in stored) / before


def _error(sites: Sequence[SiteResult], choices: Sequence[Choice]) -> float | None:
    """The root of the damages' sum, where damage was measured in the outputs' error."""
    if not any(site.predicted_error is not None for site in sites):
        return None
    return math.sqrt(math.fsum(choice.candidate.error for choice in choices))


def _speed(weights: Sequence[PlannedWeight], choices: Sequence[Choice], original_ms: float) -> float | None:
    """As if all else took as long as before; None where no weight was timed, or they'd save more than there is."""
    if all(weight.latency is None for weight in weights):
        return None
    saved = math.fsum(
        weight.latency(DENSE, None) - weight.latency(choice.candidate.form, choice.candidate.rank)
        for weight, choice in zip(weights, choices, strict=True)
        if weight.latency is not None
    )
    return original_ms / (original_ms - saved) if saved < original_ms else None
