"""What real feeds teach before anything is planned: what each weight's inputs look like, and what its damage costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import onnx

from lowrank_onnx.cache import NO_CACHE, Cache, Slot
from lowrank_onnx.cache.codecs import recall_moments, sensitivity_codec, store_moments
from lowrank_onnx.cache.facts import feed_facts
from lowrank_onnx.candidates import tail_energy
from lowrank_onnx.effort import SensitivityLevel
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.evaluate.turns import OpenModel
from lowrank_onnx.forms import MATRIX, PAIR, Form
from lowrank_onnx.moments import Moment, advise_rows, keep_moment, merge_moments, observe_moments
from lowrank_onnx.observe import Observation
from lowrank_onnx.progress import Progress
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured, interpolate_error
from lowrank_onnx.sensitivity.exclusions import Probe, find_exclusions
from lowrank_onnx.sensitivity.measure import count_runs, measure_sensitivity
from lowrank_onnx.sensitivity.probe_feeds import feeds_to_probe
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Curves, ErrorCurve, Site, Spectrum, WeightRef, numpy_dtype
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the feeds taught about one weight.

    Attributes
    ----------
    whitened : whether its factors minimise the error of what its sites compute.
    curves : its errors by rank, in the norm of its inputs where `whitened`; empty where it stayed dense.
    importance : measured output error per tail energy, or None.
    note : what could not be learnt and what would help, or "".
    sensitivity : what was measured, where it was.
    """

    whitened: bool
    curves: Curves
    importance: float | None
    note: str
    sensitivity: Sensitivity | None = None


NO_LESSON = Lesson(whitened=False, curves={}, importance=None, note="")
"""Where there were no real feeds."""


def lessons(
    groups: Sequence[SharedWeight],
    curves: Sequence[Curves],
    moments: Mapping[WeightRef, Moment | str],
    sensitivities: Mapping[WeightRef, Sensitivity | Unmeasured],
) -> dict[WeightRef, Lesson]:
    """What there is to report of each weight."""
    return {
        group.weight: _lesson(known, moments.get(group.weight), sensitivities.get(group.weight))
        for group, known in zip(groups, curves, strict=True)
    }


def _lesson(curves: Curves, moment: Moment | str | None, sensitivity: Sensitivity | Unmeasured | None) -> Lesson:
    notes: list[str | None] = []
    if moment is not None:
        notes.append(advise_rows(moment) if isinstance(moment, Moment) else f"not whitened: {moment}")
        if isinstance(moment, Moment) and moment.mirrored is not None:
            notes.append(advise_rows(moment.mirrored))
    if isinstance(sensitivity, Sensitivity):
        notes.append(sensitivity.problem)
    elif sensitivity is not None:
        notes.append(f"effect not measured: {sensitivity.reason}")
    measured = sensitivity if isinstance(sensitivity, Sensitivity) else None
    importance = None if measured is None else measured.importance
    note = "; ".join(note for note in notes if note)
    return Lesson(isinstance(moment, Moment), curves, importance, note, measured)


RunModel = Callable[[onnx.ModelProto], OpenModel]
"""Opens a session for an instrumented copy of the model's skeleton."""

PROBE_SHARES = (0.5, 0.2, 0.85)
"""Ranks at which a weight's effect is measured, as shares of the largest useful rank, the most telling first."""


def weight_moments(
    skeleton: onnx.ModelProto,
    groups: Sequence[SharedWeight],
    run: RunModel,
    feeds: Feeds,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
    cache: Cache = NO_CACHE,
    seen: Mapping[str, Observation] = MappingProxyType({}),
) -> dict[WeightRef, Moment | str]:
    """The second moment of each weight's inputs over all its sites, or the reason why there is none.

    `cache` is for results that depend on this model and how it is run; `seen` is what the sites saw on the first feed,
    by name, where they were observed.
    """
    sites = [site for group in groups for site in group.sites]
    observed = cache.scoped(lambda: chain((seed, sites), feed_facts(feeds)))

    def slot_of(part: str) -> Slot:
        return observed.slot("moments", lambda: (part,))

    known = recall_moments(slot_of, sites, lambda moment, number: keep_moment(moment, directory, number))
    if known is not None:
        return {group.weight: _merged(group, known) for group in groups}
    shapes = {site.input: seen[site.name].input_shape for site in sites if site.name in seen}
    by_site = observe_moments(
        skeleton, sites, run, feeds, seed=seed, directory=directory, first_shapes=shapes, progress=progress
    )
    store_moments(slot_of, sites, by_site)
    return {group.weight: _merged(group, by_site) for group in groups}


def _merged(group: SharedWeight, by_site: Mapping[str, Moment | str]) -> Moment | str:
    straight: list[Moment] = []
    mirrored: list[Moment] = []
    for site in group.sites:
        moment = by_site[site.name]
        if isinstance(moment, str):
            return moment
        (mirrored if site.mirrored else straight).append(moment)
    merged = merge_moments(straight)
    return replace(merged, mirrored=merge_moments(mirrored)) if mirrored else merged


def weight_sensitivities(
    skeleton: onnx.ModelProto,
    groups: Sequence[SharedWeight],
    curves: Sequence[Curves],
    spool: FactorSpool,
    run: RunModel,
    feeds: Feeds,
    level: SensitivityLevel,
    progress: Progress,
    cache: Cache = NO_CACHE,
    decode: Callable[[WeightRef], Array] | None = None,
) -> dict[WeightRef, Sensitivity | Unmeasured]:
    """The measured effect on the outputs of compressing each factorized weight alone; empty where `level` is "off".

    "fast" tries one rank of each weight, "full" three; `feeds_to_probe` says on how many feeds. `cache` is as in
    `weight_moments`; each weight is kept when it is measured. `decode` reads the weights that are stored with an
    encoding.
    """
    by_weight = {g.weight: known for g, known in zip(groups, curves, strict=True) if known}
    measured = [group for group in groups if group.weight in by_weight]
    if level == "off" or not measured:
        return {}
    ranks_of = partial(probe_ranks, by_weight, 1 if level == "fast" else len(PROBE_SHARES))
    max_feeds = feeds_to_probe(level, count_runs(measured, ranks_of, 1, 1), len(feeds), feeds.samples)
    tails = partial(probe_tail, by_weight)
    # All weights are open to be overridden in one session, so which they are decides how each run rounds.
    together = cache.scoped(lambda: chain([group.weight for group in measured], feed_facts(feeds, max_feeds)))
    facts_of = partial(_probe_facts, spool, by_weight, ranks_of, tails)
    slots = {group.weight: together.slot("sensitivity", partial(facts_of, group)) for group in measured}
    kept = {weight: slot.get(sensitivity_codec(weight)) for weight, slot in slots.items()}
    known = {weight: result for weight, result in kept.items() if result is not None}
    if len(known) == len(measured):
        return known
    with progress.stage("measuring sensitivity", count_runs(measured, ranks_of, len(feeds), max_feeds)) as stage:
        found = measure_sensitivity(
            skeleton,
            measured,
            run,
            feeds,
            partial(approximation, spool, by_weight),
            tails,
            ranks_of,
            max_feeds=max_feeds,
            decode=decode,
            known=known,
            finished=lambda result: slots[result.weight].put(sensitivity_codec(result.weight), result),
            progress=stage,
        )
    return {result.weight: result for result in found}


def _probe_form(group: SharedWeight, curves: Curves) -> Form | None:
    """The form that is tried: the first with a factorization; that of a matrix as it lies, where it comes from one."""
    known = next((form for form in group.forms if form.family in curves), None)
    return PAIR if known is not None and known.family == MATRIX else known


def _tried(curves: Mapping[WeightRef, Curves], group: SharedWeight) -> Form:
    """`_probe_form` of a weight that was factorized."""
    form = _probe_form(group, curves[group.weight])
    assert form is not None
    return form


def probe_ranks(curves: Mapping[WeightRef, Curves], count: int, group: SharedWeight) -> tuple[int, ...]:
    """The ranks at which a weight that was factorized is tried, at most `count`, the most telling first."""
    form = _tried(curves, group)
    curve = curves[group.weight][form.family]
    if not isinstance(curve, Spectrum):
        return tuple(dict.fromkeys(curve.ranks[int(share * len(curve.ranks))] for share in PROBE_SHARES[:count]))
    largest = min(curve.values.shape[-1], max(1, form.largest_useful_rank(group.shape)))
    return tuple(max(1, round(share * largest)) for share in PROBE_SHARES[:count])


def probe_tail(curves: Mapping[WeightRef, Curves], group: SharedWeight, rank: int) -> float:
    """The relative squared tail energy of the form that is tried of a weight."""
    return tail_energy(curves[group.weight][_tried(curves, group).family], rank)


def _probe_facts(
    spool: FactorSpool,
    curves: Mapping[WeightRef, Curves],
    ranks_of: Callable[[SharedWeight], Sequence[int]],
    tails: Callable[[SharedWeight, int], float],
    group: SharedWeight,
) -> Iterator[object]:
    """What decides the effect of one weight, besides the model and the feeds: the factors that take its place."""
    ranks = ranks_of(group)
    yield from (group.weight, group.sites[0].to_matrices, tuple(ranks), tuple(tails(group, rank) for rank in ranks))
    for rank in ranks:
        stored = spool.get(group.weight, _tried(curves, group), rank)
        yield (stored.form.name, stored.accumulation, stored.parts())


def approximation(spool: FactorSpool, curves: Mapping[WeightRef, Curves], group: SharedWeight, rank: int) -> Array:
    """A weight in the form that is tried of it, in its stored layout and dtype."""
    return approximated(spool, group, _tried(curves, group), rank)


def approximated(spool: FactorSpool, group: SharedWeight, form: Form, rank: int) -> Array:
    """A weight in a form at a rank, in its stored layout and dtype."""
    matrices = spool.get(group.weight, form, rank).approximate()
    return stored_layout(matrices, group.sites[0]).astype(numpy_dtype(group.weight.dtype))


def stored_layout(matrices: Array, site: Site) -> Array:
    """From (groups, in, out) back to the layout in which the site's weight is stored."""
    forward = site.to_matrices
    moved = tuple(forward.split[axis] for axis in forward.order)
    back = tuple(forward.order.index(axis) for axis in range(len(forward.order)))
    return matrices.reshape(moved).transpose(back).reshape(site.weight.shape)


def predicted_damage(
    groups: Sequence[SharedWeight], sensitivities: Mapping[WeightRef, Sensitivity | Unmeasured]
) -> tuple[Callable[[float], float], ...]:
    """For each weight, from relative squared tail energy to the damage that the planner adds up.

    Where the effect was measured, damage is the predicted relative squared error of the outputs. A weight whose effect
    couldn't be measured gets the median importance of the others; with none measured, damage is the tail itself.

    What was measured is of one weight alone: where many are cut hard at once, their effects don't simply add up.
    """
    known = [s.importance for s in sensitivities.values() if isinstance(s, Sensitivity) and math.isfinite(s.importance)]
    typical = statistics.median(known) if known else 1.0
    return tuple(_damage(sensitivities.get(group.weight), typical) for group in groups)


def _damage(sensitivity: Sensitivity | Unmeasured | None, typical: float) -> Callable[[float], float]:
    if isinstance(sensitivity, Sensitivity):
        return partial(interpolate_error, sensitivity)
    return lambda tail: typical * tail


def exclusions(
    groups: Sequence[SharedWeight], lessons: Mapping[WeightRef, Lesson], max_error: float | None
) -> dict[WeightRef, str]:
    """The weights that a user should exclude, with the reason; `find_exclusions` says by which rule."""
    probes = {}
    for group in groups:
        lesson = lessons.get(group.weight, NO_LESSON)
        sensitivity, form = lesson.sensitivity, _probe_form(group, lesson.curves)
        if sensitivity is None or form is None:
            continue
        curve = lesson.curves[form.family]
        saved = group.shape.parameters - form.parameters(group.shape, sensitivity.ranks[0])
        mildest = interpolate_error(sensitivity, _least_tail(curve, form.largest_useful_rank(group.shape)))
        probes[group.weight] = Probe(sensitivity, saved, mildest)
    return find_exclusions(probes, max_error)


def _least_tail(curve: ErrorCurve, most: int) -> float:
    """The tail energy at the largest rank that is known and at most `most`, or the smallest rank that is known."""
    if isinstance(curve, Spectrum):
        return tail_energy(curve, min(most, curve.values.shape[-1]))
    return tail_energy(curve, max((rank for rank in curve.ranks if rank <= most), default=curve.ranks[0]))
