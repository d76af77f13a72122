"""How far to trust effects that were measured one weight at a time: several plans, and the one that does least harm.

Damage that was measured of each weight alone is right for one weight. Where many are cut hard at once their effects
don't add up: they pass through each other, and errors that are large alone hide behind those of others. Tail energies,
each counted alike, know nothing of the outputs, but nothing of that fails them either. Between the two lies

    measured^trust * tail^(1 - trust)

with all that was measured at a trust of 1 and the energies alone at 0. Which trust serves a model and a budget best
can't be told from the parts; it is measured, on whole models that the plans make.

So it is with forms: effects are measured with the plain form of each weight, and what they say of another form holds
as far as its errors are like the plain form's. The plan that was chosen is held against one of plain forms alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from lowrank_onnx.candidates import Candidate, PlannedWeight, low_rank_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.results import PlanTrial
from lowrank_onnx.types import Curves

TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""From full trust to none."""

SAME = 1.03
"""Errors whose ratio is within this count as equal, and the lower trust is taken: what was measured was so on few
feeds, tail energies are of all of them. Measured on the shipped models, choices on some 200 samples scatter by that."""

FLAT = 1.1
"""Errors of the first and the middle trust whose ratio is within this may lie on both sides of a lesser one."""


def _no_rival(trust: float) -> None:
    del trust


@dataclass(slots=True)
class PlanJudge:
    """Measures whole plans, and remembers what came of it.

    Attributes
    ----------
    error_of : builds the model of some choices, and measures the relative error of its outputs.
    trusts : descending. A single one is taken without measuring anything.
    trials : of all plans so far.
    """

    error_of: Callable[[Sequence[Choice]], float]
    trusts: tuple[float, ...] = TRUSTS
    trials: list[PlanTrial] = field(default_factory=list)

    def choose(
        self,
        keep: float,
        plan_at: Callable[[float], tuple[Choice, ...]],
        plain_at: Callable[[float], tuple[Choice, ...] | None] = _no_rival,
    ) -> tuple[Choice, ...]:
        """The choices of the trust that does least harm.

        The first and the middle trust are tried. Where the middle one does no more harm, lower ones follow for as long
        as that holds; where it does, those above it, from the middle up. Where the next lower one does more, and the
        first no more than the middle one, to a tenth, what lies between these two is tried as well.

        Parameters
        ----------
        keep : the share of the cost that the plans keep; for the report.
        plan_at : makes the choices at a trust. Plans that are alike are measured once.
        plain_at : makes the choices of plain forms alone at a trust, None where they can't keep so little. Where they
            do clearly less harm at the trust that was chosen, the choices of their own best trust are taken.
        """
        if len(self.trusts) == 1:
            self.trials.append(PlanTrial(keep, self.trusts[0], None, chosen=True))
            return plan_at(self.trusts[0])
        found = _Ladder(self.error_of, self.trusts, plan_at)
        chosen = found.least_harm()
        rivals = _Ladder(self.error_of, self.trusts, plain_at)
        if not rivals.try_at(chosen):
            self.trials += found.trials(keep, chosen)
            return found.plans[chosen]
        if rivals.errors[chosen] * SAME < found.errors[chosen]:
            best = rivals.least_harm()
            self.trials += (*found.trials(keep, None), *rivals.trials(keep, best, plain=True))
            return rivals.plans[best]
        self.trials += (*found.trials(keep, chosen), *rivals.trials(keep, None, plain=True))
        return found.plans[chosen]


class _Ladder:
    """The plans of one share that were made, and their errors, by the position of their trust."""

    def __init__(
        self,
        error_of: Callable[[Sequence[Choice]], float],
        trusts: tuple[float, ...],
        plan_at: Callable[[float], tuple[Choice, ...] | None],
    ) -> None:
        self._error_of = error_of
        self._trusts = trusts
        self._plan_at = plan_at
        self._known: dict[tuple[object, ...], float] = {}
        self.plans: dict[int, tuple[Choice, ...]] = {}
        self.errors: dict[int, float] = {}

    def try_at(self, index: int) -> bool:
        """Measure the plan of a trust, if none like it was; False where there is no plan."""
        if index in self.plans:
            return True
        plan = self._plan_at(self._trusts[index])
        if plan is None:
            return False
        key = tuple((choice.candidate.form, choice.candidate.rank) for choice in plan)
        if key not in self._known:
            error = self._error_of(plan)
            self._known[key] = math.inf if math.isnan(error) else error
        self.plans[index], self.errors[index] = plan, self._known[key]
        return True

    def least_harm(self) -> int:
        """Go up or down the trusts, and return where the one is that does least harm."""
        middle = len(self._trusts) // 2
        self.try_at(0)
        harmful = self._harms(middle)
        for index in range(middle - 1, 0, -1) if harmful else range(middle + 1, len(self._trusts)):
            if self._harms(index) != harmful:
                if index == middle + 1 and self.errors[0] < self.errors[middle] * FLAT:
                    for between in range(1, middle):
                        self.try_at(between)
                break
        tried = sorted(self.errors)
        return tried[last_good([self.errors[index] for index in tried])]

    def _harms(self, index: int) -> bool:
        """Measure the plan of a trust; whether it does more harm than the best, or there is none."""
        return not self.try_at(index) or self.errors[index] > min(self.errors.values()) * SAME

    def trials(self, keep: float, chosen: int | None, *, plain: bool = False) -> tuple[PlanTrial, ...]:
        """What was tried, by falling trust, for the report."""
        return tuple(
            PlanTrial(keep, self._trusts[index], self.errors[index], index == chosen, plain)
            for index in sorted(self.errors)
        )


def last_good(errors: Sequence[float]) -> int:
    """Where the last error is that counts as equal to the least; 0 where none is finite."""
    least = min(errors)
    return max(index for index, error in enumerate(errors) if error <= least * SAME) if math.isfinite(least) else 0


def with_trust(weights: Sequence[PlannedWeight], trust: float) -> tuple[PlannedWeight, ...]:
    """The weights with damage that is blended with the tail energy."""
    if trust == 1.0:
        return tuple(weights)
    return tuple(replace(weight, damage=partial(_blended, weight.damage, trust)) for weight in weights)


def emphasised(weights: Sequence[PlannedWeight]) -> tuple[PlannedWeight, ...]:
    """The weights with damage that counts as many times as the user said."""
    return tuple(
        weight if weight.emphasis == 1.0 else replace(weight, damage=partial(_times, weight.damage, weight.emphasis))
        for weight in weights
    )


def _times(damage: Callable[[float], float], factor: float, tail: float) -> float:
    return factor * damage(tail)


def _blended(damage: Callable[[float], float], trust: float, tail: float) -> float:
    measured = damage(tail)
    if tail == 0.0 or math.isinf(measured):
        return measured  # what can't be run is out of the question at any trust
    return float(measured**trust * tail ** (1.0 - trust))


def in_own_unit(
    weights: Sequence[PlannedWeight], choices: Sequence[Choice], curves: Mapping[str, Curves]
) -> tuple[Choice, ...]:
    """Choices that were made with blended damage, with the damage that each weight itself predicts for them.

    `curves` are the errors by rank, by the weight's name.
    """
    return tuple(
        choice if choice.candidate.rank is None else replace(choice, candidate=_same(choice, weight, curves))
        for weight, choice in zip(weights, choices, strict=True)
    )


def _same(choice: Choice, weight: PlannedWeight, curves: Mapping[str, Curves]) -> Candidate:
    form, rank = weight.form(choice.candidate.form), choice.candidate.rank
    assert rank is not None
    return low_rank_candidate(weight, form, curves[weight.name], rank)
