"""What solving the factors again did, as a person reads it."""

from __future__ import annotations

from rich.console import Group

from lowrank_onnx.report.numbers import plural, significant
from lowrank_onnx.report.tables import by_reason, heading, text
from lowrank_onnx.results import Refinement


def refinement_block(refinement: Refinement, *, verbose: bool = False) -> Group:
    """How much it helped on held-out feeds, and which weights stayed as they were, with the reasons."""
    parts = [heading("refined on the compressed model's own inputs"), text(refinement_line(refinement))]
    kept = [(weight.weight, weight.reason, 0) for weight in refinement.weights if not weight.refined]
    left = by_reason(f"left as planned: {plural(len(kept), 'weight')}", kept, verbose=verbose)
    return Group(*parts) if left is None else Group(*parts, left)


def refinement_line(refinement: Refinement) -> str:
    """The outcome in one or two sentences."""
    note = f"{refinement.note[0].upper()}{refinement.note[1:]}." if refinement.note else ""
    before, after = refinement.error_before, refinement.error_after
    if before is None or after is None:
        return f"Nothing was refined. {note}".strip()
    refined = sum(weight.refined for weight in refinement.weights)
    held_out = plural(refinement.held_out, "held-out feed")
    change = f"error of the outputs on {held_out} {significant(before)} -> {significant(after)}"
    if not refined:
        change = f"error of the outputs on {held_out} stayed at {significant(before)}"
    return f"{refined} of {plural(len(refinement.weights), 'weight')}: {change}. {note}".strip()
