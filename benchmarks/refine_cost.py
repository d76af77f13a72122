"""What refinement took, beside passes of the original in the same process."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass

from benchmarks.planning_variants import Workbench
from lowrank_onnx.refine import Refined
from lowrank_onnx.refine.walk import COMPRESSED, EQUATIONS, JUDGE, ORIGINAL, SOLVE
from lowrank_onnx.stage_clock import StageClock

PASSES = 3
"""Of which the median counts: of small models single ones take up to 1.4 times as long as others."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the stage took once, in seconds.

    `run_seconds` went into running models, `solve_seconds` into equations and their solutions, `equation_seconds` of
    which into the equations; `pass_seconds` is one pass of the original over the feeds that were given, `feeds` of
    which are solved for.
    """

    share: float
    given: int
    feeds: int
    seconds: float
    run_seconds: float
    solve_seconds: float
    pass_seconds: float
    peak_megabytes: float
    refined: int
    weights: int
    error_before: float | None
    error_after: float | None
    equation_seconds: float


def cost_of(bench: Workbench, share: float, refined: Refined, clock: StageClock, seconds: float) -> Cost:
    """What a run of the stage took in all, and by its clock; the passes are timed now."""
    report, spent = refined.report, clock.seconds
    return Cost(
        share=share,
        given=len(bench.observed.feeds),
        feeds=len(bench.calibration),
        seconds=seconds,
        run_seconds=sum(spent.get(part, 0.0) for part in (ORIGINAL, COMPRESSED, JUDGE)),
        solve_seconds=sum(spent.get(part, 0.0) for part in (EQUATIONS, SOLVE)),
        pass_seconds=statistics.median(_one_pass(bench) for _ in range(PASSES)),
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        refined=sum(weight.refined for weight in report.weights),
        weights=len(report.weights),
        error_before=report.error_before,
        error_after=report.error_after,
        equation_seconds=spent.get(EQUATIONS, 0.0),
    )


def _one_pass(bench: Workbench) -> float:
    """Seconds of the original over all feeds."""
    begin = time.perf_counter()
    for feed in bench.observed.feeds:
        bench.original.run(feed)
    return time.perf_counter() - begin
