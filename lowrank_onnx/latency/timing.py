"""Time several sessions against each other: the first is a site dense, the others are the site at ranks.

A pass measures each of them once, in a random order or in the reverse of the one before; a measurement repeats the run
until it lasts half a millisecond. Passes in a row make a round (where time does for few, each is one), and a round's
time of a model is its shortest: what disturbs a measurement on a shared machine only adds time. A rank's time is the
dense time times the median, over the rounds, of its ratio to the dense time of the same round: load that comes and goes
falls out of a ratio. The noise of a curve is the half width of those medians' intervals (distribution-free, 95 %;
`lowrank_onnx.evaluate.latency`), relative, the median of the ranks. While it isn't small the passes are doubled, and
the rounds get longer, until the time is used up. To stop for a narrow interval, not for a pleasing ratio, favours
neither side.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.evaluate.latency import median_interval
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.stopwatch import Clock, time_runs
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.types import Feed

_ROUNDS = 12
_FEWEST_PASSES = 6
"""A round each: the fewest ratios whose median has a 95 % interval."""
_LOOKS = (24, 48, 96)
"""Passes after which the noise is looked at."""
_MOST_PASSES = 192
_ENOUGH = 0.03
"""Noise at which more passes aren't worth their time."""
_WARM_UP_RUNS = 3
_MEASUREMENT_NS = 500_000
_MAX_REPEATS = 1_000
_INTERVAL_ERROR = 0.05
_LEAST_NOISE = 0.03
"""Six sessions of one and the same model differed by up to this much for as long as they were open: measured with a
768 x 768 and a 64 x 64 MatMul and a 3x3 Conv on one thread, three times each; the largest difference was 2.9 %."""


@dataclass(frozen=True, slots=True)
class TimedSession:
    """A session that is warm, the runs of one measurement, and what a run took at best."""

    session: Runner
    repeats: int
    run_ns: int


def warm_up(session: Runner, feed: Feed, clock: Clock) -> TimedSession:
    """Run a session a few times on the feed, to learn how often to repeat the run in one measurement.

    Raises
    ------
    ModelError : it can't run.
    """
    session.run(feed)
    best = time_runs(session, feed, 1, clock)
    for _ in range(_WARM_UP_RUNS - 2):
        best = min(best, time_runs(session, feed, 1, clock))
    return TimedSession(session, min(_MAX_REPEATS, math.ceil(_MEASUREMENT_NS / best)), best)


def fewest_ns(timed: TimedSession) -> int:
    """Nanoseconds that it takes to warm a session up and to measure it in the fewest passes."""
    return timed.run_ns * (timed.repeats * _FEWEST_PASSES + _WARM_UP_RUNS)


def measure_rounds(
    timed: Sequence[TimedSession], feed: Feed, deadline: int, seed: int, clock: Clock
) -> list[list[float]]:
    """Nanoseconds of one run: a row for each round, a column for each session.

    Parameters
    ----------
    timed : warm sessions, dense first, then one or more ranks.
    feed : what they all run on.
    deadline : of `clock`; a pass that has begun is ended, and 6 passes there are in any case.
    seed : of the orders.
    clock : nanoseconds.
    """
    generator = np.random.default_rng(seed)
    order: list[int] = []
    passes: list[list[float]] = []
    while len(passes) < _FEWEST_PASSES or (len(passes) < _MOST_PASSES and clock() < deadline):
        order = order[::-1] if len(passes) % 2 else generator.permutation(len(timed)).tolist()
        row = [0.0] * len(timed)
        for index in order:
            one = timed[index]
            row[index] = time_runs(one.session, feed, one.repeats, clock) / one.repeats
        passes.append(row)
        if len(passes) in _LOOKS and _noise(_ratios(_rounds(passes))) <= _ENOUGH:
            break
    return _rounds(passes)


def _rounds(passes: Sequence[Sequence[float]]) -> list[list[float]]:
    """The shortest times of passes in a row: 6 rounds, from 12 passes on of two each, and 12 where there are more."""
    count = min(_ROUNDS, max(_FEWEST_PASSES, len(passes) // 2))
    bounds = [len(passes) * index // count for index in range(count + 1)]
    rounds = (passes[start:end] for start, end in itertools.pairwise(bounds))
    return [[min(column) for column in zip(*rows, strict=True)] for rows in rounds]


def _ratios(rounds: Sequence[Sequence[float]]) -> list[list[float]]:
    """For each rank its time as a share of the dense time, round by round."""
    return [[row[column] / row[0] for row in rounds] for column in range(1, len(rounds[0]))]


def _noise(ratios: Sequence[Sequence[float]]) -> float:
    """Half the interval of a rank's median, relative to it; the median of the ranks."""
    intervals = [median_interval(values, _INTERVAL_ERROR) for values in ratios]
    middles = [statistics.median(values) for values in ratios]
    widths = [(high - low) / 2.0 / middle for (low, high), middle in zip(intervals, middles, strict=True)]
    return max(_LEAST_NOISE, statistics.median(widths))


def curve_of(ranks: Sequence[int], rounds: Sequence[Sequence[float]]) -> LatencyCurve:
    """The curve from times with dense in the first column and one column for each rank."""
    dense_ms = statistics.median(row[0] for row in rounds) / 1e6
    ratios = _ratios(rounds)
    rank_ms = tuple(dense_ms * statistics.median(values) for values in ratios)
    return LatencyCurve(dense_ms, tuple(ranks), rank_ms, _noise(ratios))
