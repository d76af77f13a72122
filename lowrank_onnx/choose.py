"""From a budget to one choice per weight: a rank, or dense with the reason.

Budgets that name a rank (``--rank``, ``--alpha``, ``--energy``) settle each weight by itself; budgets over the whole
model go through the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from lowrank_onnx.bundles import find_bundles, joint_candidates, joint_ranks, plan_bundles
from lowrank_onnx.candidates import (
    Candidate,
    PlannedWeight,
    dense_candidate,
    find_candidates,
    low_rank_candidate,
    maybe_faster,
    tail_energy,
    useful_options,
    useful_ranks,
)
from lowrank_onnx.config import Alpha, Budget, Energy, FixedRank
from lowrank_onnx.costs import CostName as CostName
from lowrank_onnx.costs import dense_figure, figure, figure_at
from lowrank_onnx.planner import Plan
from lowrank_onnx.types import Curves, ErrorCurve, Tails

NOT_NEEDED = "the budget is met with less damage elsewhere"
"""Why a weight that could have shrunk stays dense in a plan."""

NOT_FASTER = "no rank is measurably faster here than dense"
"""Why a weight stays dense in a plan for latency; its time follows."""

ONLY_TOGETHER = "its only form here, shared, takes all weights that read the same input, at one rank"
"""Why a weight stays dense whose partners are something else."""

ROUNDING = 1e-12
"""Relative; so that the smallest share that there is, a quotient in floating point, can be asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was settled for one weight. `reason` says why it stays dense; it is "" otherwise."""

    candidate: Candidate
    reason: str = ""


Holds: TypeAlias = Callable[[PlannedWeight, Candidate], bool]
"""Whether a weight can be written as a candidate says, and still be as good as its curve says."""


def always(weight: PlannedWeight, candidate: Candidate) -> bool:
    """Takes every candidate at its word."""
    del weight, candidate
    return True


def _too_large(weight: PlannedWeight, rank: int) -> str:
    shape, useful = weight.shape, weight.largest_useful_rank(weight.plain)
    return (
        f"rank {rank} would not make it smaller: factors of {shape.in_features} x {shape.out_features} "
        f"save weights up to rank {useful}"
    )


def asked_rank(weight: PlannedWeight, budget: FixedRank | Alpha, rank_multiple: int | None) -> int:
    """The rank that the budget names for this weight, rounded up to `rank_multiple`; a rank given for it stands."""
    if weight.rank is not None:
        return weight.rank
    exact = budget.rank if isinstance(budget, FixedRank) else ceil(budget.alpha * weight.shape.max_rank)
    multiple = rank_multiple or 1
    return ceil(exact / multiple) * multiple


def ranks_to_factor(
    weight: PlannedWeight, budget: Budget, rank_multiple: int | None, *, allow_larger: bool = False
) -> dict[str, int]:
    """The rank of each factorization of a weight that this budget may need, by family; empty where it stays dense.

    With `allow_larger`, a budget that names a rank may take any that the weight has, smaller than dense or not.
    """
    plain = weight.plain
    if isinstance(budget, Energy) and weight.rank is not None:
        budget = FixedRank(weight.rank)
    if isinstance(budget, (FixedRank, Alpha)):
        rank = asked_rank(weight, budget, rank_multiple)
        if allow_larger:
            return {plain.family: min(rank, plain.largest_rank(weight.shape))}
        return {plain.family: rank} if rank <= weight.largest_useful_rank(plain) else {}
    ranks: dict[str, int] = {}
    for form in weight.forms[:1] if isinstance(budget, Energy) else weight.forms:
        largest = max(useful_ranks(weight, form, rank_multiple), default=0)
        if largest:
            ranks[form.family] = max(largest, ranks.get(form.family, 0))
    return ranks


def choose_alone(
    weight: PlannedWeight, curves: Curves, budget: FixedRank | Alpha | Energy, rank_multiple: int | None
) -> Choice:
    """Settle one weight under a budget that looks at no other. `curves` is empty where it wasn't factorized."""
    if isinstance(budget, Energy) and weight.rank is not None:
        budget = FixedRank(weight.rank)
    if isinstance(budget, Energy):
        return _choose_energy(weight, curves, budget, rank_multiple)
    rank = asked_rank(weight, budget, rank_multiple)
    if not curves:
        reason = ONLY_TOGETHER if weight.plain.bundle is not None else _too_large(weight, rank)
        return Choice(dense_candidate(weight), reason)
    if weight.plain.bundle is not None and not _is_computed(curves[weight.plain.family], rank):
        return Choice(dense_candidate(weight), ONLY_TOGETHER)
    rank = min(rank, weight.plain.largest_rank(weight.shape))
    return Choice(low_rank_candidate(weight, weight.plain, curves, rank))


def _is_computed(curve: ErrorCurve, rank: int) -> bool:
    """False beyond what was factorized; of weights with one factor in common, that is the least that any asks for."""
    return isinstance(curve, Tails) or rank <= curve.values.shape[-1]


def _choose_energy(weight: PlannedWeight, curves: Curves, budget: Energy, rank_multiple: int | None) -> Choice:
    ranks = useful_ranks(weight, weight.plain, rank_multiple)
    if not curves or not ranks:
        return Choice(dense_candidate(weight), nothing_useful(weight, rank_multiple))
    curve = curves[weight.plain.family]
    for rank in ranks:
        if tail_energy(curve, rank) <= 1.0 - budget.share:
            return Choice(low_rank_candidate(weight, weight.plain, curves, rank))
    kept = 1.0 - tail_energy(curve, ranks[-1])
    return Choice(
        dense_candidate(weight),
        f"energy {budget.share:g} needs a rank above {ranks[-1]}, where factors stop saving weights "
        f"(rank {ranks[-1]} keeps {kept:.4f})",
    )


def nothing_useful(weight: PlannedWeight, rank_multiple: int | None) -> str:
    """Why a weight has no candidate but dense."""
    if weight.rank is not None:
        return _too_large(weight, weight.rank)
    if all(form.bundle is not None for form in weight.forms):
        return ONLY_TOGETHER
    useful = max(weight.largest_useful_rank(form) for form in weight.forms)
    if useful == 0:
        return f"too small: no rank of {weight.shape.in_features} x {weight.shape.out_features} saves weights"
    return f"no multiple of {rank_multiple} is at most {useful}, the largest rank that saves weights"


def choose_together(
    weights: Sequence[PlannedWeight],
    curves: Mapping[str, Curves],
    *,
    cost: CostName,
    share: float,
    rank_multiple: int | None,
    only_faster: bool = False,
    holds: Holds = always,
) -> tuple[tuple[Choice, ...], Plan]:
    """Settle all weights at once: the least total damage at `share` of their dense parameters, bytes, MACs or
    latency.

    `curves` is by weight name; a weight without one stays dense. With `cost` "macs" or "latency", weights for which
    that is not known stay dense and are left out of the budget.

    With `only_faster`, candidates that were measured and aren't faster than dense by more than the noise are not taken,
    unless the share is out of reach without them: what was asked for counts for more than what one weight gains.

    Weights that can share their first factor are planned together, as one item (`lowrank_onnx.bundles`).

    A candidate that is about to be chosen and doesn't hold (`Holds`) is struck off, and the plan is made again.
    """
    planned = [weight for weight in weights if dense_figure(weight, cost) is not None]
    alone = {
        weight.name: list(find_candidates(weight, curves.get(weight.name, {}), rank_multiple, only_faster=only_faster))
        for weight in planned
    }
    bundles = find_bundles(planned)
    joint = [list(joint_candidates(bundle, curves, rank_multiple, only_faster=only_faster)) for bundle in bundles]
    ordered = [weight for bundle in bundles for weight in bundle.weights]
    total = sum(figure(dense_candidate(weight), cost) for weight in planned)

    while True:
        plan = plan_bundles(
            [[alone[weight.name] for weight in bundle.weights] for bundle in bundles],
            joint,
            lambda candidate: figure(candidate, cost),
            total * (share + ROUNDING),
        )
        broken = [
            (weight, candidate)
            for weight, candidate in zip(ordered, plan.choices, strict=True)
            if candidate.rank is not None and not holds(weight, candidate)
        ]
        if not broken:
            break
        for weight, candidate in broken:
            _strike(alone[weight.name], joint, candidate)
            if not alone[weight.name]:
                alone[weight.name].append(dense_candidate(weight))
    if only_faster and not plan.feasible:
        return choose_together(weights, curves, cost=cost, share=share, rank_multiple=rank_multiple, holds=holds)
    chosen = {weight.name: candidate for weight, candidate in zip(ordered, plan.choices, strict=True)}
    choices = (
        Choice(chosen[weight.name], _dense_reason(weight, chosen[weight.name], rank_multiple, only_faster))
        if weight.name in chosen
        else _choose_unknown(weight, curves.get(weight.name, {}), cost)
        for weight in weights
    )
    return tuple(choices), plan


def _strike(alone: list[Candidate], joint: Iterable[list[Candidate]], candidate: Candidate) -> None:
    """Take a weight's candidate out of wherever it stands."""
    if candidate in alone:
        alone.remove(candidate)
    for together in joint:
        together[:] = [one for one in together if all(member is not candidate for member in one.members)]


def smallest_share(
    weights: Sequence[PlannedWeight], *, cost: CostName, rank_multiple: int | None, only_faster: bool = False
) -> float:
    """The smallest share of dense parameters, bytes, MACs or latency that the weights can be brought to; 1.0 where none
    can shrink. `only_faster` is that of `choose_together`.
    """
    least = dense = 0
    for bundle in find_bundles([weight for weight in weights if dense_figure(weight, cost) is not None]):
        whole = [dense_figure(weight, cost) or 0 for weight in bundle.weights]
        alone = [
            [
                figure_at(weight, form, rank, cost)
                for form, rank in useful_options(weight, rank_multiple)
                if not only_faster or maybe_faster(weight, form.name, rank)
            ]
            for weight in bundle.weights
        ]
        joint = [
            sum(figure_at(weight, form, rank, cost) for weight, form in bundle.pairs)
            for rank in joint_ranks(bundle, rank_multiple, only_faster=only_faster)
        ]
        lowest = (
            min((*found, *(() if weight.rank is not None and found else (one,))))
            for weight, found, one in zip(bundle.weights, alone, whole, strict=True)
        )
        dense += sum(whole)
        least += min((sum(lowest), *joint))
    return least / dense if dense else 1.0


def _choose_unknown(weight: PlannedWeight, curves: Curves, cost: CostName) -> Choice:
    """A weight that has no place in the budget: dense, unless its rank is given."""
    if weight.rank is not None:
        return choose_alone(weight, curves, FixedRank(weight.rank), None)
    if cost == "macs":
        reason = "its MACs are not known: no run of the model reaches it where its shape can be seen"
    else:
        reason = f"its latency is not known: {weight.unmeasured or 'it was not measured'}"
    return Choice(dense_candidate(weight), reason)


def _dense_reason(weight: PlannedWeight, candidate: Candidate, rank_multiple: int | None, only_faster: bool) -> str:
    if candidate.rank is not None:
        return ""
    options = useful_options(weight, rank_multiple)
    if not options:
        return nothing_useful(weight, rank_multiple)
    if weight.rank is not None:
        return f"{options[0][0].name} at rank {weight.rank} would round too much in the stored dtype"
    if only_faster and not any(maybe_faster(weight, form.name, rank) for form, rank in options):
        return f"{NOT_FASTER} ({candidate.latency_ms:.3g} ms)"
    return NOT_NEEDED
