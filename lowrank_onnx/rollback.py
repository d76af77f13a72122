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

    Parameters
    ----------
    weights : with their measured latency, where there is one; one that couldn't be measured gains nothing measurable.
    choices : what the model that wasn't faster was made of.

    Returns
    -------
    The new choices, with a reason on each weight that was put back; None where no rewritten weight would be left, or
    where none may be put back, since all ranks were given.
    """
    rewritten = [index for index, choice in enumerate(choices) if choice.candidate.rank is not None]
    total = len(rewritten)
    rewritten = [index for index in rewritten if weights[index].rank is None]
    worst = [index for index in rewritten if not _gains(weights[index], choices[index])]
    if not worst:
        by_worth = sorted(rewritten, key=lambda index: (_worth(weights[index], choices[index]), index))
        worst = by_worth[: math.ceil(len(rewritten) / 3)]
    bundles = {_bundle(weights[index], choices[index]) for index in worst} - {None}
    worst = [i for i in rewritten if i in worst or _bundle(weights[i], choices[i]) in bundles]
    if not worst or len(worst) == total:
        return None
    revised = list(choices)
    for index in worst:
        reason = f"{PUT_BACK} {_reason(weights[index], choices[index])}"
        revised[index] = Choice(dense_candidate(weights[index]), reason)
    return tuple(revised)


def _bundle(weight: PlannedWeight, choice: Choice) -> str | None:
    """What names the weights that share the first factor of a choice: they stay, or go, together."""
    return next((form.bundle for form in weight.forms if form.name == choice.candidate.form), None)


def _gains(weight: PlannedWeight, choice: Choice) -> bool:
    rank = choice.candidate.rank
    return weight.latency is not None and rank is not None and maybe_faster(weight, choice.candidate.form, rank)


def _saving(weight: PlannedWeight, choice: Choice) -> float:
    """Milliseconds of one run that the choice saves, as measured."""
    if weight.latency is None:
        return 0.0
    return weight.latency(DENSE, None) - weight.latency(choice.candidate.form, choice.candidate.rank)


def _worth(weight: PlannedWeight, choice: Choice) -> float:
    """Milliseconds saved for each unit of damage."""
    error = weight.emphasis * choice.candidate.error
    return _saving(weight, choice) / error if error > 0.0 else math.inf


def _reason(weight: PlannedWeight, choice: Choice) -> str:
    form, rank = choice.candidate.form, choice.candidate.rank
    if weight.latency is None:
        return f"its latency is not known ({weight.unmeasured or 'it was not measured'})"
    dense_ms = weight.latency(DENSE, None)
    if not _gains(weight, choice):
        rank_ms = weight.latency(form, rank)
        return f"rank {rank} is not measurably faster here than dense ({rank_ms:.3g} of {dense_ms:.3g} ms)"
    return f"rank {rank} saved least for its damage ({_saving(weight, choice):.3g} of {dense_ms:.3g} ms)"
