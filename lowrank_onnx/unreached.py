"""Why nothing was rewritten, and the best that can be had instead: one sentence for every kind of budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank_onnx.candidates import PlannedWeight, tail_energy, useful_ranks
from lowrank_onnx.choose import NOT_FASTER, Choice
from lowrank_onnx.config import Alpha, Config, Energy, FixedRank, MaxDrop, MaxError, Speedup
from lowrank_onnx.no_sites import NO_WEIGHT
from lowrank_onnx.results import SearchStep
from lowrank_onnx.types import Curves


def unchanged_message(
    config: Config,
    weights: Sequence[PlannedWeight],
    curves: Sequence[Curves],
    choices: Sequence[Choice],
    search: Sequence[SearchStep],
    *,
    compressed_before: bool,
    why_none: str = NO_WEIGHT,
) -> str:
    """Why nothing was rewritten.

    Parameters
    ----------
    config : its budget was out of reach.
    weights, curves, choices : the weights that could be factorized, their errors by rank, what was settled for each.
    search : the attempts.
    compressed_before : whether an earlier run has written factors into the model.
    why_none : the reason where there are no weights.
    """
    budget = config.budget
    if not weights:
        return f"nothing to compress: {why_none}"
    if isinstance(budget, Speedup) and search:
        return _too_slow(budget, search)
    if compressed_before:
        return "nothing left to compress: an earlier run has factorized what this budget would"
    if isinstance(budget, MaxDrop) and search:
        return _drops_too_far(budget, search)
    if isinstance(budget, MaxError) and search:
        return _errs_too_far(budget, search)
    if any(choice.reason.startswith(NOT_FASTER) for choice in choices):
        return "nothing to gain: no weight is measurably faster at any rank"
    best = _best_alone(config, weights, curves)
    return f"nothing to gain: at this budget no weight gets smaller{best}"


def _too_slow(budget: Speedup, search: Sequence[SearchStep]) -> str:
    fastest = max(search, key=lambda step: step.speedup or 0.0)
    return (
        f"out of reach: the fastest model tried is {fastest.speedup:.3g} times as fast (relative error of its "
        f"outputs: {fastest.error:.3g}), below --speedup {budget.speedup:g}"
    )


def _drops_too_far(budget: MaxDrop, search: Sequence[SearchStep]) -> str:
    best = min(search, key=lambda step: math.inf if step.judged_drop is None else step.judged_drop)
    judged = best.judged_drop
    certain = "" if judged == best.drop else f", {judged:.3g} at most with 95 % confidence"
    return (
        f"out of reach: the model tried that comes closest keeps the share {best.keep:.3f} and has a drop of "
        f"{best.drop:.3g}{certain}, above --max-drop {budget.drop:g}"
    )


def _errs_too_far(budget: MaxError, search: Sequence[SearchStep]) -> str:
    best = min(search, key=lambda step: math.inf if math.isnan(step.error) else step.error)
    return (
        f"out of reach: the model tried that comes closest keeps the share {best.keep:.3f} and has a relative error of "
        f"{best.error:.3g}, above --max-error {budget.error:g}"
    )


def _best_alone(config: Config, weights: Sequence[PlannedWeight], curves: Sequence[Curves]) -> str:
    """The nearest value at which a budget that looks at each weight alone would rewrite one; "" where there is none."""
    useful = [(weight, useful_ranks(weight, weight.plain, config.rank_multiple or 1)) for weight in weights]
    largest = [(weight, ranks[-1]) for weight, ranks in useful if ranks]
    if not largest:
        return ""
    if isinstance(config.budget, FixedRank):
        return f"; the largest --rank that makes one smaller is {max(rank for _, rank in largest)}"
    if isinstance(config.budget, Alpha):
        share = max(rank / weight.shape.max_rank for weight, rank in largest)
        return f"; the largest --alpha that makes one smaller is {math.floor(share * 1000) / 1000:g}"
    if isinstance(config.budget, Energy):
        kept = [_most_kept(weight, curve, config) for weight, curve in zip(weights, curves, strict=True)]
        return f"; the largest --energy that makes one smaller is {math.floor(max(kept) * 10000) / 10000:g}"
    return ""


def _most_kept(weight: PlannedWeight, curves: Curves, config: Config) -> float:
    """The share of its energy that a weight keeps at the largest rank that makes it smaller."""
    ranks = useful_ranks(weight, weight.plain, config.rank_multiple)
    curve = curves.get(weight.plain.family)
    return 0.0 if curve is None or not ranks else 1.0 - tail_energy(curve, ranks[-1])
