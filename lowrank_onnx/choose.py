"""From a budget to one choice per weight: a rank, or dense with the reason.

Budgets that name a rank (``--rank``, ``--alpha``, ``--energy``) settle each weight by itself; budgets over the whole
model go through the planner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from lowrank_onnx.candidates import (
    Candidate,
    PlannedWeight,
    dense_candidate,
    find_candidates,
    low_rank_candidate,
    maybe_faster,
    tail_energy,
    useful_ranks,
)
from lowrank_onnx.config import Alpha, Budget, Energy, FixedRank
from lowrank_onnx.forms import FORMS
from lowrank_onnx.planner import Plan, plan_budget
from lowrank_onnx.types import Spectrum

CostName = Literal["parameters", "macs", "latency"]

NOT_NEEDED = "the budget is met with less damage elsewhere"
"""Why a weight that could have shrunk stays dense in a plan."""

NOT_FASTER = "no rank is measurably faster here than dense"
"""Why a weight stays dense in a plan for latency; its time follows."""

ROUNDING = 1e-12
"""Relative; so that the smallest share that there is, a quotient in floating point, can be asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was settled for one weight. `reason` says why it stays dense; it is "" otherwise."""

    candidate: Candidate
    reason: str = ""


def _too_large(weight: PlannedWeight, rank: int) -> str:
    shape, useful = weight.shape, weight.largest_useful_rank
    return (
        f"rank {rank} would not make it smaller: factors of {shape.in_features} x {shape.out_features} "
        f"save weights up to rank {useful}"
    )


def asked_rank(weight: PlannedWeight, budget: FixedRank | Alpha, rank_multiple: int | None) -> int:
    """The rank that the budget names for this weight, rounded up to `rank_multiple`."""
    exact = budget.rank if isinstance(budget, FixedRank) else ceil(budget.alpha * weight.shape.max_rank)
    multiple = rank_multiple or 1
    return ceil(exact / multiple) * multiple


def factor_rank(weight: PlannedWeight, budget: Budget, rank_multiple: int | None, *, allow_larger: bool = False) -> int:
    """The rank at which a weight must be factorized for this budget; 0 where every choice leaves it dense.

    With `allow_larger`, a budget that names a rank may take any that the weight has, smaller than dense or not.
    """
    if isinstance(budget, (FixedRank, Alpha)):
        rank = asked_rank(weight, budget, rank_multiple)
        useful = weight.largest_useful_rank
        if allow_larger:
            return min(rank, weight.shape.max_rank)
        return rank if rank <= useful else 0
    return max(useful_ranks(weight, rank_multiple), default=0)


def choose_alone(
    weight: PlannedWeight, spectrum: Spectrum | None, budget: FixedRank | Alpha | Energy, rank_multiple: int | None
) -> Choice:
    """Settle one weight under a budget that looks at no other. `spectrum` is None where it wasn't factorized."""
    if isinstance(budget, Energy):
        return _choose_energy(weight, spectrum, budget, rank_multiple)
    rank = asked_rank(weight, budget, rank_multiple)
    if spectrum is None:
        return Choice(dense_candidate(weight), _too_large(weight, rank))
    return Choice(low_rank_candidate(weight, spectrum, min(rank, weight.shape.max_rank)))


def _choose_energy(
    weight: PlannedWeight, spectrum: Spectrum | None, budget: Energy, rank_multiple: int | None
) -> Choice:
    ranks = useful_ranks(weight, rank_multiple)
    if spectrum is None or not ranks:
        return Choice(dense_candidate(weight), nothing_useful(weight, rank_multiple))
    for rank in ranks:
        if tail_energy(spectrum, rank) <= 1.0 - budget.share:
            return Choice(low_rank_candidate(weight, spectrum, rank))
    kept = 1.0 - tail_energy(spectrum, ranks[-1])
    return Choice(
        dense_candidate(weight),
        f"energy {budget.share:g} needs a rank above {ranks[-1]}, where factors stop saving weights "
        f"(rank {ranks[-1]} keeps {kept:.4f})",
    )


def nothing_useful(weight: PlannedWeight, rank_multiple: int | None) -> str:
    """Why a weight has no candidate but dense."""
    useful = weight.largest_useful_rank
    if useful == 0:
        return f"too small: no rank of {weight.shape.in_features} x {weight.shape.out_features} saves weights"
    return f"no multiple of {rank_multiple} is at most {useful}, the largest rank that saves weights"


def choose_together(
    weights: Sequence[PlannedWeight],
    spectra: Mapping[str, Spectrum],
    *,
    cost: CostName,
    share: float,
    rank_multiple: int | None,
    only_faster: bool = False,
) -> tuple[tuple[Choice, ...], Plan]:
    """Settle all weights at once: the least total damage at `share` of their dense parameters, MACs or latency.

    `spectra` is by weight name; a weight without one stays dense. With `cost` "macs" or "latency", weights for which
    that is not known stay dense and are left out of the budget.

    With `only_faster`, ranks that were measured and aren't faster than dense by more than the noise are not taken,
    unless the share is out of reach without them: what was asked for counts for more than what one weight gains.
    """
    planned = [weight for weight in weights if _figure_at(weight, None, cost) is not None]
    options = []
    for weight in planned:
        spectrum = spectra.get(weight.name)
        dense = (dense_candidate(weight),)
        options.append(
            dense if spectrum is None else find_candidates(weight, spectrum, rank_multiple, only_faster=only_faster)
        )
    total = sum(figure(dense_candidate(weight), cost) for weight in planned)
    plan = plan_budget(options, lambda candidate: figure(candidate, cost), total * (share + ROUNDING))
    if only_faster and not plan.feasible:
        return choose_together(weights, spectra, cost=cost, share=share, rank_multiple=rank_multiple)
    chosen = {weight.name: candidate for weight, candidate in zip(planned, plan.choices, strict=True)}
    choices = (
        Choice(chosen[weight.name], _dense_reason(weight, chosen[weight.name], rank_multiple, only_faster))
        if weight.name in chosen
        else Choice(dense_candidate(weight), _unknown(weight, cost))
        for weight in weights
    )
    return tuple(choices), plan


def smallest_share(
    weights: Sequence[PlannedWeight], *, cost: CostName, rank_multiple: int | None, only_faster: bool = False
) -> float:
    """The smallest share of dense parameters, MACs or latency that the weights can be brought to; 1.0 where none can
    shrink. `only_faster` is that of `choose_together`.
    """
    least = dense = 0
    for weight in weights:
        whole = _figure_at(weight, None, cost)
        if whole is None:
            continue
        ranks = useful_ranks(weight, rank_multiple)
        figures = [_figure_at(weight, r, cost) for r in ranks if not only_faster or maybe_faster(weight, r)]
        dense += whole
        least += min((found for found in figures if found is not None), default=whole)
    return least / dense if dense else 1.0


def _unknown(weight: PlannedWeight, cost: CostName) -> str:
    if cost == "macs":
        return "its MACs are not known: no run of the model reaches it where its shape can be seen"
    return f"its latency is not known: {weight.unmeasured or 'it was not measured'}"


def _dense_reason(weight: PlannedWeight, candidate: Candidate, rank_multiple: int | None, only_faster: bool) -> str:
    if candidate.rank is not None:
        return ""
    ranks = useful_ranks(weight, rank_multiple)
    if not ranks:
        return nothing_useful(weight, rank_multiple)
    if only_faster and not any(maybe_faster(weight, rank) for rank in ranks):
        return f"{NOT_FASTER} ({candidate.latency_ms:.3g} ms)"
    return NOT_NEEDED


def figure(candidate: Candidate, cost: CostName) -> int:
    """The parameters, the MACs or the nanoseconds of a candidate: whole numbers, so that sums are exact."""
    if cost == "parameters":
        return candidate.parameters
    if cost == "latency":
        if candidate.latency_ms is None:
            raise ValueError("the latency of this candidate is not known")
        return _nanoseconds(candidate.latency_ms)
    if candidate.macs is None:
        raise ValueError("the MACs of this candidate are not known")
    return candidate.macs


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def _figure_at(weight: PlannedWeight, rank: int | None, cost: CostName) -> int | None:
    """What `figure` is at a rank (None: dense); None where it is not known."""
    if cost == "latency":
        return None if weight.latency is None else _nanoseconds(weight.latency(rank))
    parameters = weight.shape.parameters if rank is None else FORMS[weight.form].parameters(weight.shape, rank)
    if cost == "parameters":
        return parameters
    if weight.positions is None:
        return None
    return (
        weight.positions * parameters if rank is None else FORMS[weight.form].macs(weight.shape, rank, weight.positions)
    )
