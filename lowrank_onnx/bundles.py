"""Weights that can be written together or each by itself, as one item of the planner's knapsack.

A bundle is an item whose candidates are plans for all of its weights: the members together at a rank, and what they can
do by themselves. Of the latter only those are kept that a Lagrangian plan over the members alone would ever take: the
steps along their lower hulls, merged by what they gain for each unit of cost. With them the plan over all items is the
plan over all weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lowrank_onnx.candidates import (
    DENSE,
    Candidate,
    PlannedWeight,
    is_known,
    low_rank_candidate,
    maybe_faster,
    useful_ranks,
)
from lowrank_onnx.forms import Form
from lowrank_onnx.planner import Cost, Plan, convex_hull, gain, plan_budget
from lowrank_onnx.types import Curves


@dataclass(frozen=True, slots=True)
class Bundle:
    """The weights of one item: one, or several that can be written together in `forms` (one of each weight)."""

    weights: tuple[PlannedWeight, ...]
    forms: tuple[Form, ...] = ()

    @property
    def pairs(self) -> tuple[tuple[PlannedWeight, Form], ...]:
        """Each weight with its form in the bundle; none for a weight by itself."""
        return tuple(zip(self.weights, self.forms, strict=False))


def find_bundles(weights: Sequence[PlannedWeight]) -> tuple[Bundle, ...]:
    """The items in the order of their first weights. Weights of an incomplete bundle are by themselves."""
    members: dict[str, list[tuple[PlannedWeight, Form]]] = {}
    for weight in weights:
        for form in weight.forms:
            if form.bundle is not None:
                members.setdefault(form.bundle, []).append((weight, form))
    complete: dict[str, Bundle] = {}
    for found in members.values():
        if len(found) == found[0][1].bundle_size:
            bundle = Bundle(tuple(weight for weight, _ in found), tuple(form for _, form in found))
            complete.update((weight.name, bundle) for weight in bundle.weights)
    return tuple(dict.fromkeys(complete.get(weight.name, Bundle((weight,))) for weight in weights))


def joint_ranks(bundle: Bundle, rank_multiple: int | None, *, only_faster: bool) -> tuple[int, ...]:
    """The ranks worth considering for all members together, ascending; none for a weight by itself."""
    ranks = [set(useful_ranks(weight, form, rank_multiple)) for weight, form in bundle.pairs]
    return tuple(
        rank
        for rank in sorted(set.intersection(*ranks) if ranks else ())
        if not only_faster or all(maybe_faster(weight, form.name, rank) for weight, form in bundle.pairs)
    )


def joint_candidates(
    bundle: Bundle, curves: Mapping[str, Curves], rank_multiple: int | None, *, only_faster: bool
) -> Iterator[Candidate]:
    """The candidates of a bundle whose members are written together."""
    for rank in joint_ranks(bundle, rank_multiple, only_faster=only_faster):
        known = [curves.get(weight.name, {}) for weight in bundle.weights]
        if all(is_known(of.get(form.family), rank) for of, form in zip(known, bundle.forms, strict=True)):
            yield together(
                [low_rank_candidate(weight, form, curves[weight.name], rank) for weight, form in bundle.pairs]
            )


def together(members: Sequence[Candidate]) -> Candidate:
    """One candidate that stands for a choice for each weight of a bundle."""
    macs = [member.macs for member in members]
    latencies = [member.latency_ms for member in members]
    forms = {member.form for member in members}
    return Candidate(
        form=forms.pop() if len(forms) == 1 else "mixed",
        rank=None if all(member.form == DENSE for member in members) else 0,
        parameters=sum(member.parameters for member in members),
        macs=None if None in macs else sum(one for one in macs if one is not None),
        error=sum(member.error for member in members),
        latency_ms=None if None in latencies else sum(one for one in latencies if one is not None),
        stored_bytes=sum(member.stored_bytes for member in members),
        members=tuple(members),
    )


def apart(alone: Sequence[Sequence[Candidate]], cost: Cost) -> tuple[Candidate, ...]:
    """What the weights of a bundle can do by themselves: every point of the merged hulls, cheapest first.

    Parameters
    ----------
    alone : for each weight its candidates.
    cost : the figure that the plan limits.
    """
    hulls = [convex_hull(candidates, cost) for candidates in alone]
    steps = sorted(
        (-gain(hull[position], hull[position + 1], cost), member, position + 1)
        for member, hull in enumerate(hulls)
        for position in range(len(hull) - 1)
    )
    current = [hull[0] for hull in hulls]
    found = [together(current)]
    for _, member, position in steps:
        current[member] = hulls[member][position]
        found.append(together(current))
    return tuple(found)


def plan_bundles(
    alone: Sequence[Sequence[Sequence[Candidate]]], joint: Sequence[Sequence[Candidate]], cost: Cost, budget: float
) -> Plan:
    """`plan_budget` over items of one or more weights; the plan has one choice for each weight, in their order.

    The items compete first, to settle which of them are written together; then all weights do, so that what is left of
    the budget can be spent on any of them.

    Parameters
    ----------
    alone : for each item, for each of its weights, what it can do by itself.
    joint : for each item, what its weights can do together.
    cost, budget : as for `plan_budget`.
    """

    def cost_of(candidate: Candidate) -> int:
        return sum(cost(member) for member in members_of([candidate]))

    items = [
        [*apart(by_weight, cost), *shared] if len(by_weight) > 1 else by_weight[0]
        for by_weight, shared in zip(alone, joint, strict=True)
    ]
    first = plan_budget(items, cost_of, budget)
    free: list[Sequence[Candidate]] = []
    for by_weight, shared, chosen in zip(alone, joint, first.choices, strict=True):
        free.extend([shared] if any(chosen is one for one in shared) else by_weight)
    plan = plan_budget(free, cost_of, budget)
    return replace(plan, choices=members_of(plan.choices))


def members_of(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of single weights that these stand for, in order."""
    return tuple(member for candidate in candidates for member in candidate.members or (candidate,))
