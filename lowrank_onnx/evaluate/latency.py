"""Paired latency of two models: interleaved, warmed up, with an interval that says what the figures are worth.

One *pair* is four timed measurements on one feed, original-candidate-candidate-original or the reverse. Its ratio is
the shorter of the original's two times over the shorter of the candidate's two: what disturbs a measurement on a
shared machine only ever adds time. Of two pairs in a row each takes one order (a seeded coin decides which is first),
so that drift and the place in the order don't favour a model. A measurement repeats the run until it lasts about a
millisecond, so that the clock and the call don't count.

The interval is the distribution-free one for a median: the median of n ratios lies between the l-th smallest and the
l-th largest with probability 1 - 2 P(Binomial(n, 1/2) < l), whatever their distribution (David and Nagaraja, *Order
Statistics*, 3rd ed., section 7.1). It needs no variance, which a shared machine doesn't have, and no resampling. It
takes the pairs as independent, which load that lasts over many pairs weakens.

Measuring stops early where the interval leaves 1 out. Looking several times and stopping when pleased would make the
interval too narrow; so the looks are fixed before the first pair, and each is taken at (1 - confidence) divided by
their number (Bonferroni): all of them hold together with the stated confidence.

Sessions that take turns are timed in blocks instead (`lowrank_onnx.evaluate.blocks`).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.blocks import alternate
from lowrank_onnx.evaluate.feed_arrays import shapes_of
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.stopwatch import (
    MAX_FEEDS,
    MAX_REPEATS,
    MEASUREMENT_NS,
    NO_FEED,
    Clock,
    Measurements,
    Plan,
    time_runs,
)
from lowrank_onnx.evaluate.turns import take_turns
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.types import Feed, LatencyComparison, Timing

_WARM_UP_SHARE = 0.25
"""Of `max_seconds`: no further feed is taken in when warming up has used it."""


def measure_latency(
    original: Runner,
    candidate: Runner,
    feeds: Feeds,
    *,
    min_pairs: int = 8,
    max_pairs: int = 192,
    max_seconds: float = 60.0,
    confidence: float = 0.95,
    seed: int = 0,
    warm: bool = False,
    progress: StageProgress | None = None,
    clock: Clock = time.perf_counter_ns,
) -> LatencyComparison:
    """Time two models against each other; the module's docstring says how.

    Parameters
    ----------
    original, candidate : what to run. Both get the same feeds, of which the first 8 are used.
    min_pairs, max_pairs : pairs at the first look, and at most.
    max_seconds : sets how many pairs are planned, from the time that warming up took. However slow the models, the
        fewest pairs that can decide are measured (6 at 95 %).
    confidence : of the interval, all looks together.
    seed : of the order within interleaved pairs.
    warm : whether both have just run on these feeds, so that one run tells how long another takes.
    progress : is advanced by 1 for each pair.
    clock : nanoseconds; `time.perf_counter_ns` but in tests.

    Returns
    -------
    LatencyComparison
        ``speedup`` is the median ratio; the interval is that of the look at which measuring stopped. Times are
        milliseconds of one run on one feed.

    Raises
    ------
    UsageError : there is no feed, or an argument is out of its range.
    ModelError : a model can't run.
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence {confidence:g}: expected a share between 0 and 1, e.g. 0.95")
    if not 1 <= min_pairs <= max_pairs or not max_seconds > 0.0:
        raise UsageError(
            f"pairs {min_pairs} to {max_pairs}, {max_seconds:g} s: expected 1 <= min_pairs <= max_pairs, and some time"
        )
    found = Measurements()
    plan = partial(_interleave, warm=warm) if take_turns(original, candidate) is None else alternate
    repeats, pair_seconds, measure_pair = plan(original, candidate, feeds, max_seconds, seed, clock, found)
    looks = plan_looks(int(max_seconds / pair_seconds), min_pairs, max_pairs, confidence)
    level = (1.0 - confidence) / len(looks)
    low, high = 0.0, math.inf
    with _without_garbage_collection():
        for look in looks:
            while len(found.ratios) < look:
                measure_pair(len(found.ratios))
                if progress is not None:
                    progress.advance()
            low, high = median_interval(found.ratios, level)
            if low > 1.0 or high < 1.0:
                break
    return LatencyComparison(
        original=_timing(found.original_ms, repeats),
        candidate=_timing(found.candidate_ms, repeats),
        speedup=float(np.median(found.ratios)),
        speedup_low=low,
        speedup_high=high,
        confidence=confidence,
        pairs=len(found.ratios),
    )


def plan_looks(affordable: int, min_pairs: int, max_pairs: int, confidence: float) -> tuple[int, ...]:
    """The numbers of pairs at which the interval is looked at: doubling from `min_pairs` to all that time allows.

    Looks that could never leave 1 out, having too few pairs for their share of the error, are left away; the last one
    always can.
    """
    error = 1.0 - confidence
    total = max(min(affordable, max_pairs), _fewest_pairs(error))
    looks = []
    look = min_pairs
    while look * 2 <= total:
        looks.append(look)
        look *= 2
    looks.append(total)
    while len(looks) > 1 and looks[0] < _fewest_pairs(error / len(looks)):
        del looks[0]
    return tuple(looks)


def median_interval(values: Sequence[float], error: float) -> tuple[float, float]:
    """The distribution-free interval of the median that misses it with probability `error` at most.

    Returns
    -------
    (low, high); ``(0, inf)`` where there are too few values for any interval.
    """
    ordered = sorted(values)
    below = 0
    tail = 0.0
    for successes in range(len(ordered) // 2):
        tail += math.comb(len(ordered), successes) * 0.5 ** len(ordered)
        if tail > error / 2.0:
            break
        below = successes + 1
    if below == 0:
        return 0.0, math.inf
    return ordered[below - 1], ordered[-below]


def _fewest_pairs(error: float) -> int:
    """The fewest values whose smallest and largest are an interval of that error: 2 * 0.5^n <= error."""
    return max(2, math.ceil(math.log2(2.0 / error) - 1e-9))


def _interleave(
    original: Runner,
    candidate: Runner,
    feeds: Feeds,
    max_seconds: float,
    seed: int,
    clock: Clock,
    found: Measurements,
    *,
    warm: bool,
) -> Plan:
    """Warm both models up, and plan pairs of single measurements."""
    kept, repeats, pair_seconds = _warm_up(original, candidate, feeds, max_seconds, clock, warm=warm)
    generator = np.random.default_rng(seed)
    swapped = False

    def measure_pair(index: int) -> None:
        nonlocal swapped
        swapped = bool(generator.integers(2)) if index % 2 == 0 else not swapped
        _measure_pair(original, candidate, kept[index % len(kept)], repeats, swapped, clock, found)

    return repeats, pair_seconds, measure_pair


def _warm_up(
    original: Runner, candidate: Runner, feeds: Feeds, max_seconds: float, clock: Clock, *, warm: bool
) -> tuple[list[Feed], int, float]:
    """Time a run of both models on a feed of each shape, the second one where they aren't warm.

    Returns
    -------
    The feeds that take turns, the runs of one measurement, and the seconds that one pair takes.
    """
    kept: list[Feed] = []
    timed: dict[tuple[tuple[int, ...], ...], int] = {}
    shortest, total = math.inf, 0
    started = clock()
    for feed in itertools.islice(feeds, MAX_FEEDS):
        shapes = shapes_of(feed)
        if shapes not in timed:
            timed[shapes] = 0
            for model in (original, candidate):
                if not warm:
                    model.run(feed)
                elapsed = time_runs(model, feed, 1, clock)
                shortest, timed[shapes] = min(shortest, elapsed), timed[shapes] + elapsed
        kept.append(feed)
        total += timed[shapes]
        if clock() - started > _WARM_UP_SHARE * max_seconds * 1e9:
            break
    if not kept:
        raise UsageError(NO_FEED)
    repeats = min(MAX_REPEATS, math.ceil(MEASUREMENT_NS / shortest))
    return kept, repeats, 2.0 * repeats * total / len(kept) / 1e9


def _measure_pair(
    original: Runner, candidate: Runner, feed: Feed, repeats: int, swapped: bool, clock: Clock, found: Measurements
) -> None:
    outer, inner = (candidate, original) if swapped else (original, candidate)
    first = time_runs(outer, feed, repeats, clock)
    second = time_runs(inner, feed, repeats, clock)
    third = time_runs(inner, feed, repeats, clock)
    fourth = time_runs(outer, feed, repeats, clock)
    outer_times, inner_times = (first, fourth), (second, third)
    original_times, candidate_times = (inner_times, outer_times) if swapped else (outer_times, inner_times)
    found.ratios.append(min(original_times) / min(candidate_times))
    found.original_ms += [elapsed / repeats / 1e6 for elapsed in original_times]
    found.candidate_ms += [elapsed / repeats / 1e6 for elapsed in candidate_times]


def _timing(milliseconds: Sequence[float], repeats: int) -> Timing:
    lower, median, upper = np.percentile(milliseconds, [25, 50, 75])
    return Timing(median_ms=float(median), iqr_ms=float(upper - lower), runs=len(milliseconds) * repeats)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
