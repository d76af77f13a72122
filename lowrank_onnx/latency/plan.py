"""What the weights of a model cost in time, for the planner: curves of their sites, added up, in bounded time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.evaluate.latency import Clock
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.table import Unmeasured
from lowrank_onnx.observe import Observation
from lowrank_onnx.progress import Progress
from lowrank_onnx.types import Feed, Site, WeightRef
from lowrank_onnx.weights import SharedWeight

TOTAL_SECONDS = 10.0
"""Time for all curves of a model; a measurement that has begun is ended."""

SITE_SECONDS = (0.4, 0.2, 0.1, 0.05)
"""Time for one curve: the first of these with which all of them fit into the total, else the last. Steps, so that
models of different sizes share entries of a cache."""

MOST_NOISE = 0.1
"""Noise that is asked of a gain at most. On a busy machine it can be of any size; the middle of what was measured then
says more than its edge: no rank would ever pass for faster, and the whole model is timed in the end."""

_ORIGINAL_SECONDS = 1.0
_FEWEST_RUNS = 5
_MOST_RUNS = 200


class CurveTable(Protocol):
    """Where curves come from; `lowrank_onnx.latency.table.LatencyTable` is one."""

    def curve(self, skeleton: onnx.ModelProto, site: Site, input_shape: tuple[int, ...]) -> LatencyCurve | Unmeasured:
        """How long a site takes, dense and at ranks, or why that can't be said."""
        ...


@dataclass(frozen=True, slots=True)
class WeightLatency:
    """The time of a weight by rank: the sum over the sites that use it.

    `curves` has one entry for each of those sites. Noise adds up as if all of it had the same direction, the most that
    it can do.
    """

    curves: tuple[LatencyCurve, ...]

    def __call__(self, rank: int | None) -> float:
        """Milliseconds of one run at a rank, or dense (None)."""
        return math.fsum(curve.dense_ms if rank is None else curve.at(rank) for curve in self.curves)

    @property
    def noise(self) -> float:
        """Relative half width of what can't be told apart."""
        return math.fsum(curve.noise * curve.dense_ms for curve in self.curves) / self(None)


def measure_weights(
    skeleton: onnx.ModelProto,
    groups: Iterable[SharedWeight],
    seen: Mapping[str, Observation],
    open_table: Callable[[float], CurveTable],
    progress: Progress,
    *,
    total_seconds: float = TOTAL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[WeightRef, WeightLatency | Unmeasured]:
    """Measure what each weight costs over all its sites, the most work first.

    Parameters
    ----------
    skeleton : the model, with or without its weights.
    groups : the weights and their sites.
    seen : what the sites saw in a run, by name; a weight with a site that isn't there is not measured.
    open_table : makes the table that measures, given the seconds for one curve.
    progress : receives a stage of one unit for each different site.
    total_seconds : once they are used up, sites unlike those measured so far stay unmeasured.
    clock : seconds from any fixed start.

    Raises
    ------
    UsageError, OutputError : as `LatencyTable.curve`.
    """
    found: dict[WeightRef, WeightLatency | Unmeasured] = {}
    visible: list[SharedWeight] = []
    for group in groups:
        if all(site.name in seen for site in group.sites):
            visible.append(group)
        else:
            found[group.weight] = Unmeasured("no run of the model reaches it where its shape can be seen")
    kinds = {_kind(site, seen[site.name]) for group in visible for site in group.sites}
    table = open_table(_site_seconds(len(kinds), total_seconds))
    known: set[Hashable] = set()
    deadline = clock() + total_seconds
    with progress.stage("timing weights", len(kinds)) as stage:
        for group in sorted(visible, key=lambda one: -_work(one, seen)):
            curves: list[LatencyCurve | Unmeasured] = []
            for site in group.sites:
                kind = _kind(site, seen[site.name])
                if kind not in known and clock() >= deadline:
                    curves.append(Unmeasured(f"the {total_seconds:g} s for timing went to weights with more work"))
                    continue
                curves.append(table.curve(skeleton, site, seen[site.name].input_shape))
                if kind not in known:
                    known.add(kind)
                    stage.advance(detail=site.name)
            found[group.weight] = _added_up(curves)
    return found


def with_latency(
    weights: Sequence[PlannedWeight], found: Sequence[WeightLatency | Unmeasured]
) -> tuple[PlannedWeight, ...]:
    """The weights with what was found for each of them; their noise is `MOST_NOISE` at most."""
    return tuple(
        replace(weight, latency=latency, noise=min(latency.noise, MOST_NOISE))
        if isinstance(latency, WeightLatency)
        else replace(weight, unmeasured=latency.reason)
        for weight, latency in zip(weights, found, strict=True)
    )


def _added_up(curves: Sequence[LatencyCurve | Unmeasured]) -> WeightLatency | Unmeasured:
    missing = [curve for curve in curves if isinstance(curve, Unmeasured)]
    if missing:
        return missing[0]
    return WeightLatency(tuple(curve for curve in curves if isinstance(curve, LatencyCurve)))


def _kind(site: Site, observation: Observation) -> Hashable:
    """Sites that differ in it differ in time; equal ones may still differ, in an attribute, and cost a curve more."""
    return site.op_type, site.form, site.weight.dtype, site.to_matrices, observation.input_shape


def _work(group: SharedWeight, seen: Mapping[str, Observation]) -> int:
    return group.shape.parameters * sum(seen[site.name].positions for site in group.sites)


def _site_seconds(kinds: int, total_seconds: float) -> float:
    return next((seconds for seconds in SITE_SECONDS if seconds * kinds <= total_seconds), SITE_SECONDS[-1])


def time_runs(session: Runner, feed: Feed, *, clock: Clock = time.perf_counter_ns) -> float:
    """Milliseconds of one run of a model: the median of 5 runs and more, in about a second, after two to warm up.

    It says where a search for a speedup begins. What the search accepts is measured in pairs.
    """
    for _ in range(2):
        session.run(feed)
    runs: list[int] = []
    deadline = clock() + round(_ORIGINAL_SECONDS * 1e9)
    while len(runs) < _FEWEST_RUNS or (len(runs) < _MOST_RUNS and clock() < deadline):
        started = clock()
        session.run(feed)
        runs.append(max(1, clock() - started))
    return statistics.median(runs) / 1e6
