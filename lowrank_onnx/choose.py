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
    tail_energy,
    useful_ranks,
)
from lowrank_onnx.config import Alpha, Budget, Energy, FixedRank
from lowrank_onnx.forms import FORMS
from lowrank_onnx.planner import Plan, plan_budget
from lowrank_onnx.types import Spectrum

CostName = Literal["parameters", "macs"]

NOT_NEEDED = "the budget is met with less damage elsewhere"
"""Why a weight that could have shrunk stays dense in a plan."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was settled for one weight. `reason` says why it stays dense; it is "" otherwise."""

    candidate: Candidate
    reason: str = ""


def _too_large(weight: PlannedWeight, rank: int) -> str:
    shape, useful = weight.shape, FORMS[weight.form].largest_useful_rank(weight.shape)
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
        useful = FORMS[weight.form].largest_useful_rank(weight.shape)
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
    useful = FORMS[weight.form].largest_useful_rank(weight.shape)
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
) -> tuple[tuple[Choice, ...], Plan]:
    """Settle all weights at once: the least total damage at `share` of their dense parameters or MACs.

    `spectra` is by weight name; a weight without one stays dense. With `cost` "macs", weights whose MACs are not known
    stay dense and are left out of the budget.
    """
    planned: list[int] = []
    options: list[tuple[Candidate, ...]] = []
    choices: list[Choice | None] = [None] * len(weights)
    limit = 0.0
    for index, weight in enumerate(weights):
        if cost == "macs" and weight.positions is None:
            reason = "its MACs are not known: no run of the model reaches it where its shape can be seen"
            choices[index] = Choice(dense_candidate(weight), reason)
            continue
        limit += share * figure(dense_candidate(weight), cost)
        planned.append(index)
        spectrum = spectra.get(weight.name)
        dense = (dense_candidate(weight),)
        options.append(dense if spectrum is None else find_candidates(weight, spectrum, rank_multiple))
    plan = plan_budget(options, lambda candidate: figure(candidate, cost), limit)
    for index, candidate in zip(planned, plan.choices, strict=True):
        choices[index] = Choice(candidate, _dense_reason(weights[index], candidate, rank_multiple))
    return tuple(choice for choice in choices if choice is not None), plan


def smallest_share(weights: Sequence[PlannedWeight], *, cost: CostName, rank_multiple: int | None) -> float:
    """The smallest share of dense parameters or MACs that the weights can be brought to; 1.0 where none can shrink."""
    least = dense = 0
    for weight in weights:
        if cost == "macs" and weight.positions is None:
            continue
        ranks = useful_ranks(weight, rank_multiple)
        each = 1 if cost == "parameters" else weight.positions or 0
        dense += each * weight.shape.parameters
        least += each * (FORMS[weight.form].parameters(weight.shape, ranks[0]) if ranks else weight.shape.parameters)
    return least / dense if dense else 1.0


def _dense_reason(weight: PlannedWeight, candidate: Candidate, rank_multiple: int | None) -> str:
    if candidate.rank is not None:
        return ""
    if not useful_ranks(weight, rank_multiple):
        return nothing_useful(weight, rank_multiple)
    return NOT_NEEDED


def figure(candidate: Candidate, cost: CostName) -> int:
    """The parameters or the MACs of a candidate."""
    if cost == "parameters":
        return candidate.parameters
    if candidate.macs is None:
        raise ValueError("the MACs of this candidate are not known")
    return candidate.macs
