from __future__ import annotations

from dataclasses import replace

from lowrank_onnx.report.refinement_text import refinement_block, refinement_line
from lowrank_onnx.results import RefinedWeight, Refinement
from tests.report.rendering import rendered

CHANGED = RefinedWeight("w1", True, "", "sum", 0.03, 0.2, 0.15, 4096)
KEPT = RefinedWeight("w0", False, "its inputs are the original's", "output", None, None, None, 0)
HELPED = Refinement(96, 24, 0.0527, 0.0361, (KEPT, CHANGED))


def test_what_helped_is_said_in_figures() -> None:
    assert refinement_line(HELPED) == "1 of 2 weights: error of the outputs on 24 held-out feeds 0.0527 -> 0.0361."


def test_what_did_not_help_is_said_too() -> None:
    undone = replace(HELPED, error_after=HELPED.error_before, weights=(KEPT, KEPT))
    assert refinement_line(undone) == "0 of 2 weights: error of the outputs on 24 held-out feeds stayed at 0.0527."


def test_why_nothing_was_tried() -> None:
    note = "1 feed to calibrate with: give at least 2, of which one is held out"
    nothing = Refinement(1, 0, None, None, (), note)
    assert refinement_line(nothing) == f"Nothing was refined. {note}."


def test_the_block_lists_what_was_left_with_its_reason() -> None:
    text = rendered(refinement_block(HELPED))
    assert "left as planned: 1 weight" in text
    assert "its inputs are the original's" in text
    assert "w0" in text
    assert "left as planned" not in rendered(refinement_block(replace(HELPED, weights=(CHANGED,))))
