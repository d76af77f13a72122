"""What budgets would take of a model, by its spectra alone, and in plain words whether there is anything to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lowrank_onnx.candidates import PlannedWeight, useful_ranks
from lowrank_onnx.choose import Choice, CostName, choose_together, smallest_share
from lowrank_onnx.inspect_result import InspectedPlan
from lowrank_onnx.no_sites import NO_WEIGHT
from lowrank_onnx.noise_spectrum import noise_tail
from lowrank_onnx.site_result import Totals
from lowrank_onnx.trust import emphasised
from lowrank_onnx.types import Curves

SHARES = (0.8, 0.6, 0.4)
"""Shares of the eligible weights' MACs, or of their parameters where no MACs are known, that are looked at."""

SMALL_PART = 0.1
"""Share of a model's parameters below which its eligible weights are called a small part of it."""

NEAR_NOISE = 0.9
"""Error relative to that of noise from which on a spectrum is called hardly better than noise."""


def plain(weights: Sequence[PlannedWeight]) -> tuple[PlannedWeight, ...]:
    """The weights with their plain form alone: it is what spectra tell of."""
    return tuple(replace(weight, forms=weight.forms[:1]) for weight in weights)


def plan_shares(
    weights: Sequence[PlannedWeight], curves: Mapping[str, Curves]
) -> tuple[tuple[InspectedPlan, tuple[Choice, ...]], ...]:
    """The plans of `SHARES` with what they choose for each weight; shares that no ranks can reach are left out.

    Damage is a weight's relative tail energy. What the model's outputs make of it is not in the spectra.

    Parameters
    ----------
    weights : as `plain` gives them.
    curves : the errors by rank, by name.
    """
    cost: CostName = "parameters" if any(weight.positions is None for weight in weights) else "macs"
    if not weights:
        return ()
    floor = smallest_share(weights, cost=cost, rank_multiple=None)
    found = []
    for share in SHARES:
        if share < floor:
            continue
        choices, _ = choose_together(emphasised(weights), curves, cost=cost, share=share, rank_multiple=None)
        found.append((_plan(weights, choices, share, cost), choices))
    return tuple(found)


def _plan(weights: Sequence[PlannedWeight], choices: Sequence[Choice], share: float, cost: CostName) -> InspectedPlan:
    candidates = [choice.candidate for choice in choices]
    rewritten = [
        (candidate.error / weight.emphasis, noise_tail(weight.shape, candidate.rank))
        for weight, candidate in zip(weights, candidates, strict=True)
        if candidate.rank is not None
    ]
    macs = [candidate.macs for candidate in candidates]
    return InspectedPlan(
        flag="--keep-macs" if cost == "macs" else "--keep-params",
        share=share,
        rewritten=len(rewritten),
        parameters=sum(candidate.parameters for candidate in candidates),
        macs=None if None in macs else sum(one for one in macs if one is not None),
        error=_root_mean([tail for tail, _ in rewritten]),
        noise_error=_root_mean([tail for _, tail in rewritten]),
    )


def _root_mean(squares: Sequence[float]) -> float:
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0


def prospect(
    weights: Sequence[PlannedWeight], plans: Sequence[InspectedPlan], totals: Totals, why_none: str = NO_WEIGHT
) -> str:
    """Whether there is anything to gain, in one or two sentences; `why_none` is the reason without weights."""
    if not weights:
        return f"nothing to gain: {why_none}"
    if not any(useful_ranks(weight, weight.plain, None) for weight in weights):
        return "nothing to gain: every weight is too small for factors to be smaller"
    part = totals.site_parameters / totals.parameters if totals.parameters else 1.0
    percent = f"{100 * part:.1f} %"
    small = "" if part >= SMALL_PART else f"; and the eligible weights are only {percent} of the model's parameters"
    if not plans:
        return f"little to gain: no share of {SHARES[0]:g} or less can be reached{small}"
    ratio = min(plan.error / plan.noise_error if plan.noise_error else 0.0 for plan in plans)
    if ratio >= NEAR_NOISE:
        return (
            f"probably nothing to gain: the spectra fall hardly faster than those of noise{small}. Only what the "
            "layers are used for can change that: sweep with real feeds (--calib) shows it"
        )
    if small:
        return f"little to gain{small}"
    best = plans[-1]
    return (
        f"something to gain: at {best.flag} {best.share:g} the weights lose {best.error:.2g} of their norm, where "
        f"noise would lose {best.noise_error:.2g}. What the outputs lose, and how fast it is, sweep measures"
    )
