"""What became of one weight in a walk."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.types import WeightRef


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one weight.

    Attributes
    ----------
    weight : which.
    ridge : the pull that was chosen; None where its factors stay as they were.
    reason : why they stay, or "".
    error_before, error_after : of its target on the validating rows, with the factors that it had and those that were
        solved without these; None where it was not measured.
    rows : that were solved for.
    residual : whether the target was the sum that it writes into.
    """

    weight: WeightRef
    ridge: float | None
    reason: str = ""
    error_before: float | None = None
    error_after: float | None = None
    rows: int = 0
    residual: bool = False
