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
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.stopwatch import Clock, time_runs
from lowrank_onnx.forms import Form
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

MOST_TIMED_MACS = 2**29
"""Of a convolution: one with more is timed on as many of its input's rows as leave about so many, and counted as often
as there are such parts. Some milliseconds are as long as a time that can be told from another has to be."""

FEWEST_TIMED_ROWS = 16
"""That a convolution is timed on: what it does at its borders stays a small part."""

MOST_NOISE = 0.1
"""Noise that is asked of a gain at most. On a busy machine it can be of any size; the middle of what was measured then
says more than its edge: no rank would ever pass for faster, and the whole model is timed in the end."""

CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
"""Operators whose work is in proportion to the third axis of their input."""

_ORIGINAL_SECONDS = 1.0
_FEWEST_RUNS = 5
_MOST_RUNS = 200


class CurveTable(Protocol):
    """Where curves come from; `lowrank_onnx.latency.table.LatencyTable` is one."""

    def curve(
        self,
        skeleton: onnx.ModelProto,
        site: Site,
        form: Form,
        input_shape: tuple[int, ...],
        partners: Sequence[Site] = (),
    ) -> LatencyCurve | Unmeasured:
        """How long a site takes, dense and in a form at ranks, or why that can't be said."""
        ...


@dataclass(frozen=True, slots=True)
class WeightLatency:
    """The time of a weight by form and rank: the sum over the sites that use it.

    `curves` has, for each form that was measured, one entry for each of those sites. The first form's dense times are
    taken for dense, and the others' times in proportion to theirs: each was measured against its own. Noise adds up as
    if all of it had the same direction, the most that it can do. `untimed` are forms for which there was no time.
    """

    curves: Mapping[str, tuple[LatencyCurve, ...]]
    untimed: frozenset[str] = frozenset()

    def __call__(self, form: str, rank: int | None) -> float:
        """Milliseconds of one run in a form at a rank, or dense (`DENSE`, None)."""
        first = next(iter(self.curves.values()))
        if rank is None:
            return math.fsum(curve.dense_ms for curve in first)
        pairs = zip(first, self.curves[form], strict=True)
        return math.fsum(base.dense_ms / curve.dense_ms * curve.at(rank) for base, curve in pairs)

    @property
    def noise(self) -> float:
        """Relative half width of what can't be told apart: of the form with most."""
        return max(
            math.fsum(curve.noise * curve.dense_ms for curve in curves) / math.fsum(curve.dense_ms for curve in curves)
            for curves in self.curves.values()
        )


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
    """Measure what each weight costs over all its sites: the plain form of all first, and the most work first.

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
        if not any(_multiplies(site) for site in group.sites):
            found[group.weight] = Unmeasured("a lookup multiplies nothing: factors could only make it slower")
        elif all(site.name in seen for site in group.sites):
            visible.append(group)
        else:
            found[group.weight] = Unmeasured("no run of the model reaches it where its shape can be seen")
    by_work = sorted(visible, key=lambda one: -_work(one, seen))
    timed = [
        (group, form, partners)
        for turn in range(max((len(group.forms) for group in visible), default=0))
        for group in by_work
        for form in group.forms[turn : turn + 1]
        for partners in _timed_together(form, group, visible)
    ]
    kinds = {_kind(sites, form, seen) for _, form, sites in timed}
    table = open_table(_site_seconds(len(kinds), total_seconds))
    known: set[Hashable] = set()
    deadline = clock() + total_seconds
    curves: dict[WeightRef, dict[str, list[LatencyCurve | Unmeasured]]] = {}
    untimed: dict[WeightRef, set[str]] = {}
    with progress.stage("timing weights", len(kinds)) as stage:
        for group, form, (site, *partners) in timed:
            # One of several that share a pair is timed as if it had a pair of its own, in its own layout.
            site, own = site.own, form if site.native is None else site.native.forms[0]
            kind = _kind((site, *partners), own, seen)
            curve: LatencyCurve | Unmeasured
            if kind not in known and clock() >= deadline:
                curve = Unmeasured(f"the {total_seconds:.3g} s for timing went to weights with more work")
                untimed.setdefault(group.weight, set()).add(form.name)
            else:
                more = (tuple(partners),) if partners else ()
                shape, parts = _timed_part(site, seen[site.name])
                curve = _times(table.curve(skeleton, site, own, shape, *more), parts)
                if kind not in known:
                    known.add(kind)
                    stage.advance(detail=f"{site.name}, {form.name}")
            curves.setdefault(group.weight, {}).setdefault(form.name, []).append(curve)
    found.update((weight, _added_up(of_weight, untimed.get(weight, ()))) for weight, of_weight in curves.items())
    return found


def _timed_together(form: Form, group: SharedWeight, visible: Sequence[SharedWeight]) -> list[tuple[Site, ...]]:
    """The sites that are timed as one: each of a weight's by itself, or all of a bundle, the lead first.

    The time of a bundle counts for each of its weights in proportion to what it takes dense, as any curve does.
    Nothing where part of the bundle can't be seen.
    """
    if form.bundle is None:
        return [(site,) for site in group.sites if _multiplies(site)]
    members = [one.sites[0] for one in visible if any(other.bundle == form.bundle for other in one.forms)]
    return [tuple(members)] if len(members) == form.bundle_size else []


def _timed_part(site: Site, seen: Observation) -> tuple[tuple[int, ...], float]:
    """The shape of the input on which a site is timed, and how many such parts make the whole."""
    shape, macs = seen.input_shape, site.dense_macs(seen.positions)
    if site.op_type not in CONVOLUTIONS or macs <= MOST_TIMED_MACS or shape[2] <= FEWEST_TIMED_ROWS:
        return shape, 1.0
    rows = max(FEWEST_TIMED_ROWS, math.ceil(shape[2] * MOST_TIMED_MACS / macs))
    return (*shape[:2], rows, *shape[3:]), shape[2] / rows


def _times(curve: LatencyCurve | Unmeasured, parts: float) -> LatencyCurve | Unmeasured:
    if parts == 1.0 or isinstance(curve, Unmeasured):
        return curve
    return replace(curve, dense_ms=parts * curve.dense_ms, rank_ms=tuple(parts * ms for ms in curve.rank_ms))


def _multiplies(site: Site) -> bool:
    """Whether there is anything to gain: a lookup beside products of the same weight takes next to nothing."""
    return site.dense_macs(1) > 0


def with_latency(
    weights: Sequence[PlannedWeight], found: Sequence[WeightLatency | Unmeasured]
) -> tuple[PlannedWeight, ...]:
    """The weights with what was found for each of them; their noise is `MOST_NOISE` at most.

    A weight keeps the forms that were measured, and where the plain one was, those that there was no time for
    (`ByWork`).
    """
    return tuple(
        _with_curves(weight, latency)
        if isinstance(latency, WeightLatency)
        else replace(weight, unmeasured=latency.reason)
        for weight, latency in zip(weights, found, strict=True)
    )


def _with_curves(weight: PlannedWeight, measured: WeightLatency) -> PlannedWeight:
    noise = min(measured.noise, MOST_NOISE)
    estimated = weight.plain.name in measured.curves and weight.positions is not None
    known = {*measured.curves, *(measured.untimed if estimated else ())}
    forms = tuple(form for form in weight.forms if form.name in known)
    latency = ByWork(measured, weight) if estimated else measured
    return replace(weight, forms=forms, latency=latency, noise=noise)


@dataclass(frozen=True, slots=True)
class ByWork:
    """The time of a weight by form and rank; of a form that wasn't timed, that of the plain one with as much work.

    On most shapes forms turn nine tenths and more of the ratio of their multiply-accumulates into time
    (`python -m benchmarks.forms`); without this, what wasn't timed for want of time would not be planned with.
    """

    measured: WeightLatency
    weight: PlannedWeight

    def __call__(self, form: str, rank: int | None) -> float:
        """Milliseconds of one run in a form at a rank, or dense (`DENSE`, None)."""
        if rank is None or form in self.measured.curves:
            return self.measured(form, rank)
        work, unit = (self.weight.macs(*one) for one in ((self.weight.form(form), rank), (self.weight.plain, 1)))
        assert work is not None
        assert unit is not None
        return self.measured(self.weight.plain.name, max(1, round(work / max(1, unit))))


def _added_up(
    curves: Mapping[str, Sequence[LatencyCurve | Unmeasured]], untimed: Iterable[str]
) -> WeightLatency | Unmeasured:
    """The forms of which all sites were measured; a reason where there is none."""
    measured = {
        form: tuple(curve for curve in of_form if isinstance(curve, LatencyCurve)) for form, of_form in curves.items()
    }
    complete = {form: known for form, known in measured.items() if len(known) == len(curves[form])}
    if complete:
        return WeightLatency(complete, frozenset(untimed))
    return next(curve for of_form in curves.values() for curve in of_form if isinstance(curve, Unmeasured))


def _kind(sites: Sequence[Site], form: Form, seen: Mapping[str, Observation]) -> Hashable:
    """Sites that differ in it differ in time; equal ones may still differ, in an attribute, and cost a curve more."""
    same = [
        (site.op_type, site.weight.dtype, site.to_matrices, _timed_part(site, seen[site.name])[0]) for site in sites
    ]
    return (form if form.bundle is None else form.name, *same)


def _work(group: SharedWeight, seen: Mapping[str, Observation]) -> int:
    return group.shape.parameters * sum(seen[site.name].positions for site in group.sites)


def _site_seconds(kinds: int, total_seconds: float) -> float:
    return next((seconds for seconds in SITE_SECONDS if seconds * kinds <= total_seconds), SITE_SECONDS[-1])


def median_run_ms(session: Runner, feed: Feed, *, clock: Clock = time.perf_counter_ns) -> float:
    """Milliseconds of one run of a model: the median of 5 runs and more, in about a second, after two to warm up.

    It says where a search for a speedup begins. What the search accepts is measured in pairs.
    """
    for _ in range(2):
        session.run(feed)
    runs: list[int] = []
    deadline = clock() + round(_ORIGINAL_SECONDS * 1e9)
    while len(runs) < _FEWEST_RUNS or (len(runs) < _MOST_RUNS and clock() < deadline):
        runs.append(time_runs(session, feed, 1, clock))
    return statistics.median(runs) / 1e6
