"""Paired latency of two models that take turns in memory (`lowrank_onnx.evaluate.turns`): block against block.

They can't be interleaved run by run. A pair of theirs is a block of runs of each, on all feeds that are timed; its
ratio is that of the summed shortest times. The order alternates, so that the model that ends one pair begins the next,
and each pair costs one loading. What a block runs first isn't timed. Load that changes from one block to the next isn't
cancelled as well as within an interleaved pair: it widens the interval of the median.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from lowrank_onnx.errors import UsageError
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
from lowrank_onnx.types import Feed

_FEWEST_BLOCKS = 6
"""Of each model, for an interval at 95 %."""
_RUNS_IN_BLOCK = 3
"""On each feed, at the least."""


def alternate(
    original: Runner,
    candidate: Runner,
    feeds: Feeds,
    max_seconds: float,
    seed: int,
    clock: Clock,
    found: Measurements,
) -> Plan:
    """Measure a pair of blocks to warm up, and plan more of them; the order is fixed, so `seed` decides nothing."""
    del seed
    kept, run_ns = _feeds_of_block(original, feeds, max_seconds, clock)
    repeats = min(MAX_REPEATS, math.ceil(MEASUREMENT_NS / run_ns))

    def blocks(order: Sequence[Runner]) -> dict[Runner, list[int]]:
        return {model: _measure_block(model, kept, repeats, clock) for model in order}

    def measure_pair(index: int) -> None:
        times = blocks((original, candidate) if index % 2 else (candidate, original))
        found.ratios.append(sum(times[original]) / sum(times[candidate]))
        found.original_ms += [elapsed / repeats / 1e6 for elapsed in times[original]]
        found.candidate_ms += [elapsed / repeats / 1e6 for elapsed in times[candidate]]

    started = clock()
    blocks((original, candidate))
    return repeats, max(1, clock() - started) / 1e9, measure_pair


def _feeds_of_block(original: Runner, feeds: Feeds, max_seconds: float, clock: Clock) -> tuple[list[Feed], int]:
    """As many feeds as the fewest blocks have time for, and the nanoseconds of one run."""
    first = next(iter(feeds), None)
    if first is None:
        raise UsageError(NO_FEED)
    original.run(first)
    run_ns = time_runs(original, first, 1, clock)
    affordable = int(max_seconds * 1e9 / (run_ns * 2 * _FEWEST_BLOCKS * _RUNS_IN_BLOCK))
    return list(itertools.islice(feeds, max(1, min(MAX_FEEDS, affordable)))), run_ns


def _measure_block(model: Runner, feeds: Sequence[Feed], repeats: int, clock: Clock) -> list[int]:
    """Nanoseconds of one measurement on each feed, the shorter of two."""
    shortest = []
    for feed in feeds:
        model.run(feed)
        shortest.append(min(time_runs(model, feed, repeats, clock) for _ in range(2)))
    return shortest
