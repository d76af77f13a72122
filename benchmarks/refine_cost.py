"""What refinement took, beside passes of the original in the same process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.planning_variants import Variant, Workbench
from lowrank_onnx.choose import Choice
from lowrank_onnx.refine import Refined
from lowrank_onnx.refine.walk import COMPRESSED, EQUATIONS, JUDGE, ORIGINAL, SOLVE
from lowrank_onnx.stage_clock import StageClock

PASSES = 3
"""After each run, of which the median counts: of small models single ones take up to 1.4 times as long as others."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the stage took, in seconds: of several runs that with the median of `together`.

    `run_seconds` went into running models, `solve_seconds` into equations and their solutions, `equation_seconds` of
    which into the equations; `pass_seconds` is one pass of the original over the feeds that were given, `feeds` of
    which are solved for. `together` is what running and equations took in passes, from the lowest to the highest of
    all runs.
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
    together: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    refined: Refined
    seconds: float
    spent: Mapping[str, float]
    pass_seconds: float

    @property
    def running(self) -> float:
        return sum(self.spent.get(part, 0.0) for part in (ORIGINAL, COMPRESSED, JUDGE))

    @property
    def equations(self) -> float:
        return self.spent.get(EQUATIONS, 0.0)

    @property
    def together(self) -> float:
        return (self.running + self.equations) / self.pass_seconds


def refine_timed(
    bench: Workbench, variant: Variant, choices: Sequence[Choice], share: float, runs: int
) -> tuple[Refined, Cost]:
    """Refine some choices an odd number of times, each beside passes of the original."""
    found = sorted((_run(bench, variant, choices) for _ in range(runs)), key=lambda run: run.together)
    middle = found[runs // 2]
    report = middle.refined.report
    cost = Cost(
        share=share,
        given=len(bench.observed.feeds),
        feeds=len(bench.calibration),
        seconds=middle.seconds,
        run_seconds=middle.running,
        solve_seconds=middle.equations + middle.spent.get(SOLVE, 0.0),
        pass_seconds=middle.pass_seconds,
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        refined=sum(weight.refined for weight in report.weights),
        weights=len(report.weights),
        error_before=report.error_before,
        error_after=report.error_after,
        equation_seconds=middle.equations,
        together=tuple(run.together for run in found),
    )
    return middle.refined, cost


def _run(bench: Workbench, variant: Variant, choices: Sequence[Choice]) -> _Run:
    clock = StageClock()
    begin = time.perf_counter()
    refined = bench.refine(variant, choices, clock)
    seconds = time.perf_counter() - begin
    one_pass = statistics.median(_one_pass(bench) for _ in range(PASSES))
    return _Run(refined, seconds, clock.seconds, one_pass)


def _one_pass(bench: Workbench) -> float:
    """Seconds of the original over all feeds."""
    begin = time.perf_counter()
    for feed in bench.observed.feeds:
        bench.original.run(feed)
    return time.perf_counter() - begin
