"""What paired timing is made of: one measurement, and how measurements are collected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.types import Feed

Clock: TypeAlias = Callable[[], int]
"""Nanoseconds from any fixed start."""

Plan: TypeAlias = tuple[int, float, Callable[[int], None]]
"""The runs of one measurement, the seconds that one pair takes, and what measures the pair of a number."""

MEASUREMENT_NS = 1_000_000
MAX_REPEATS = 10_000
MAX_FEEDS = 8
NO_FEED = "there is no feed to time the models on: give at least one"


@dataclass(slots=True)
class Measurements:
    """The ratio of each pair, and milliseconds of one run for each measurement."""

    ratios: list[float] = field(default_factory=list)
    original_ms: list[float] = field(default_factory=list)
    candidate_ms: list[float] = field(default_factory=list)


def time_runs(model: Runner, feed: Feed, repeats: int, clock: Clock) -> int:
    """Nanoseconds for `repeats` runs; at least 1, since a coarse clock may not have moved."""
    run = model.run
    started = clock()
    for _ in range(repeats):
        run(feed)
    return max(1, clock() - started)
