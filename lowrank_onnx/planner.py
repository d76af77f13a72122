"""One candidate per weight for the least total damage within a budget: a multiple-choice knapsack.

The damage of a plan is the sum of its candidates' errors, its cost the sum of one of their figures (parameters, MACs).
On each weight's lower convex hull of (cost, error), the steps from cheap to dear are ordered by what they gain for
each unit of cost; taking the best step of all weights again and again is the Lagrangian relaxation solved exactly for
every multiplier at once (Kellerer, Pferschy, Pisinger, *Knapsack Problems*, 2004, section 11.2). What is left of the
budget is then filled greedily, off the hull too. The plan is optimal up to the gain of one step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrank_onnx.candidates import Candidate

Cost = Callable[[Candidate], int]


@dataclass(frozen=True, slots=True)
class Plan:
    """One candidate per weight, in the order given.

    `feasible` is False where even the cheapest candidates cost more than the budget; `choices` are those then.
    """

    choices: tuple[Candidate, ...]
    cost: int
    error: float
    feasible: bool


def convex_hull(candidates: Sequence[Candidate], cost: Cost) -> tuple[Candidate, ...]:
    """The candidates on the lower convex hull of (cost, error), by rising cost and falling error."""
    hull: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (cost(c), c.error)):
        if hull and candidate.error >= hull[-1].error:
            continue
        while len(hull) >= 2 and gain(hull[-2], hull[-1], cost) <= gain(hull[-1], candidate, cost):
            hull.pop()
        hull.append(candidate)
    return tuple(hull)


def gain(cheap: Candidate, dear: Candidate, cost: Cost) -> float:
    """Damage avoided for each unit of cost by going from `cheap` to `dear`."""
    return (cheap.error - dear.error) / (cost(dear) - cost(cheap))


def plan_budget(candidates: Sequence[Sequence[Candidate]], cost: Cost, budget: float) -> Plan:
    """Choose one candidate per weight with total cost at most `budget` and the least total error.

    Parameters
    ----------
    candidates : for each weight, its candidates (at least one).
    cost : the figure that is limited.
    budget : the limit, in the unit of `cost`.
    """
    hulls = [convex_hull(options, cost) for options in candidates]
    chosen = [0] * len(hulls)
    spent = sum(cost(hull[0]) for hull in hulls)
    feasible = spent <= budget
    steps = [(-gain(hull[0], hull[1], cost), index) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, index = heapq.heappop(steps)
        hull, position = hulls[index], chosen[index]
        spent_then = spent - cost(hull[position]) + cost(hull[position + 1])
        if spent_then > budget:
            continue
        chosen[index], spent = position + 1, spent_then
        if position + 2 < len(hull):
            heapq.heappush(steps, (-gain(hull[position + 1], hull[position + 2], cost), index))
    choices = [hull[position] for hull, position in zip(hulls, chosen, strict=True)]
    if feasible:
        spent = _fill(choices, candidates, cost, budget, spent)
    return Plan(tuple(choices), spent, sum(choice.error for choice in choices), feasible)


def _fill(
    choices: list[Candidate], candidates: Sequence[Sequence[Candidate]], cost: Cost, budget: float, spent: int
) -> int:
    """Spend what is left of the budget on the single changes that gain most, in place; returns the new cost."""
    while True:
        best: tuple[float, int, Candidate] | None = None
        for index, options in enumerate(candidates):
            current = choices[index]
            for option in options:
                extra = cost(option) - cost(current)
                if option.error < current.error and spent + extra <= budget:
                    avoided = current.error - option.error
                    if best is None or avoided > best[0]:
                        best = (avoided, index, option)
        if best is None:
            return spent
        _, index, option = best
        spent += cost(option) - cost(choices[index])
        choices[index] = option
