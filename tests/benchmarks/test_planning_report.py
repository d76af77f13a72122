from __future__ import annotations

from typing import Any

from benchmarks.planning_report import BALF, PLANNERS, WHOLE, markdown, verdicts
from benchmarks.planning_variants import BALF as BALF_VARIANT
from benchmarks.planning_variants import VARIANTS

TRIALS = [
    {"keep": 0.6, "trust": 1.0, "error": 0.3, "chosen": False},
    {"keep": 0.6, "trust": 0.75, "error": 0.25, "chosen": True},
    {"keep": 0.6, "trust": 0.25, "error": None, "chosen": False},
]


def point(variant: str, asked: float, error: float) -> dict[str, Any]:
    return {
        "variant": variant,
        "cost": "parameters",
        "asked": asked,
        "kept": asked - 0.001,
        "error": error,
        "metrics": {"top-1": 0.9},
        "speedup": 1.5,
        "speedup_low": 1.4,
        "speedup_high": 1.6,
        "trials": TRIALS if variant in PLANNERS else [],
    }


def model(fast: float, full: float) -> dict[str, Any]:
    points = [point("plain SVD", 0.6, 0.5), point(BALF, 0.6, 0.2)]
    points += [point(name, 0.6, error) for name, error in zip(PLANNERS, (fast, full, 0.1), strict=True)]
    run = {
        "pass_seconds": 2.0,
        "seconds": {"observe": 6.0},
        "passes": 12.0,
        "processor_passes": 11.0,
        "passes_without_timing": 9.0,
    }
    return {
        "model": "vgg",
        "data": "judged on others",
        "date": "2026-01-02",
        "machine": "a machine",
        "versions": {"numpy": "2", "cupy": ""},
        "metrics": {"top-1": 0.95},
        "points": points,
        "few": [{"variant": "plain SVD", "asked": 0.6, "like_error": 0.4, "error": 0.5, "metrics": {"top-1": 0.8}}],
        "run": run,
    }


def test_the_report_names_the_ways_that_are_measured() -> None:
    names = [variant.name for variant in VARIANTS]
    assert BALF == BALF_VARIANT
    assert {BALF, *PLANNERS} <= {*names, WHOLE}
    assert len(names) == len(set(names))


def test_a_point_that_is_lost_is_told_with_the_winner() -> None:
    fast, full, whole, ratio, run = verdicts(model(fast=0.25, full=0.1))
    assert fast == (
        "- planner, fast: least error, to 2 %, at 0 of 1 points; "
        "not at 0.6 of the parameters (0.2500; whitened, energy ranks: 0.2000)."
    )
    assert full == "- planner, full: least error, to 2 %, at 1 of 1 points."
    assert whole == f"- {WHOLE}: least error, to 2 %, at 1 of 1 points."
    assert ratio.endswith(f"planner, fast 0.80, planner, full 2.00, {WHOLE} 2.00.")
    assert "12.0 passes" in run


def test_every_figure_is_in_the_tables() -> None:
    text = markdown({"models": [model(fast=0.15, full=0.125)]})
    for expected in (
        "| error at kept parameters | 0.6 |",
        "| planner, full | 0.1250 |",
        "| 0.6 | 0.599 | planner, fast | 0.1500 | 0.9000 | 1.50 (1.40 to 1.60) |",
        "| way | alike | error | top-1 |",
        "| plain SVD | 0.4000 | 0.5000 | 0.8000 |",
        "| observe | 6.00 | 3.0 |",
        "Uncompressed: top-1 0.9500.",
        "Measured on 2026-01-02: a machine; numpy 2.",
    ):
        assert expected in text


def test_the_trusts_that_were_tried_are_shown_with_the_one_taken() -> None:
    lines = markdown({"models": [model(fast=0.1, full=0.1)]}).splitlines()
    assert "| calibration error at kept parameters, by trust | 1 | 0.75 | 0.25 |" in lines
    assert f"| 0.6, {PLANNERS[0]} | 0.3000 | **0.2500** | not measured |" in lines
    assert not any(line.startswith(f"| 0.6, {BALF} | ") for line in lines)
