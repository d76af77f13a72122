"""Which weights to put back when a rewritten model isn't faster: those that cost most for least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank_onnx.candidates import DENSE, PlannedWeight, dense_candidate, maybe_faster
from lowrank_onnx.choose import Choice

PUT_BACK = "put back, since the model was not faster:"
"""How every reason given here begins."""


def put_back(weights: Sequence[PlannedWeight], choices: Sequence[Choice]) -> tuple[Choice, ...] | None:
    """Leave more weights dense: all that gain nothing measurable, else the third that gains least for its damage.

    Weights that share a factor are put back together, or not at all.

    Parameters
    ----------
    weights : with their measured latency, where there is one; one that couldn't be measured gains nothing measurable.
    choices : what the model that wasn't faster was made of.

    Returns
    -------
    The new choices, with a reason on each weight that was put back; None where no rewritten weight would be left, or
    where none may be put back, since all ranks were given.
    """
    rewritten = _written_together(weights, choices)
    free = [unit for unit in rewritten if all(weights[index].rank is None for index in unit)]
    worst = [unit for unit in free if not all(_gains(weights[index], choices[index]) for index in unit)]
    if not worst:
        worst = sorted(free, key=lambda unit: (_worth(weights, choices, unit), unit))[: math.ceil(len(free) / 3)]
    if not worst or len(worst) == len(rewritten):
        return None
    revised = list(choices)
    for index in (index for unit in worst for index in unit):
        reason = f"{PUT_BACK} {_reason(weights[index], choices[index])}"
        revised[index] = Choice(dense_candidate(weights[index]), reason)
    return tuple(revised)


def _written_together(weights: Sequence[PlannedWeight], choices: Sequence[Choice]) -> list[tuple[int, ...]]:
    """Places of the rewritten weights: those that share a factor as one, the others each by itself."""
    units: dict[str | int, tuple[int, ...]] = {}
    for index, (weight, choice) in enumerate(zip(weights, choices, strict=True)):
        if choice.candidate.rank is not None:
            bundle = weight.form(choice.candidate.form).bundle
            unit = index if bundle is None else bundle
            units[unit] = (*units.get(unit, ()), index)
    return list(units.values())


def _gains(weight: PlannedWeight, choice: Choice) -> bool:
    rank = choice.candidate.rank
    return weight.latency is not None and rank is not None and maybe_faster(weight, choice.candidate.form, rank)


def _saving(weight: PlannedWeight, choice: Choice) -> float:
    """Milliseconds of one run that the choice saves, as measured."""
    if weight.latency is None:
        return 0.0
    return weight.latency(DENSE, None) - weight.latency(choice.candidate.form, choice.candidate.rank)


def _worth(weights: Sequence[PlannedWeight], choices: Sequence[Choice], unit: Sequence[int]) -> float:
    """Milliseconds saved for each unit of damage."""
    error = sum(weights[index].emphasis * choices[index].candidate.error for index in unit)
    return sum(_saving(weights[index], choices[index]) for index in unit) / error if error > 0.0 else math.inf


def _reason(weight: PlannedWeight, choice: Choice) -> str:
    form, rank = choice.candidate.form, choice.candidate.rank
    if weight.latency is None:
        return f"its latency is not known ({weight.unmeasured or 'it was not measured'})"
    dense_ms = weight.latency(DENSE, None)
    if not _gains(weight, choice):
        rank_ms = weight.latency(form, rank)
        return f"rank {rank} is not measurably faster here than dense ({rank_ms:.3g} of {dense_ms:.3g} ms)"
    return f"rank {rank} saved least for its damage ({_saving(weight, choice):.3g} of {dense_ms:.3g} ms)"
