"""One row of the report for each site: what it was, what became of it, and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lowrank_onnx.calibration import NO_LESSON, Lesson, exclusions
from lowrank_onnx.candidates import DENSE, PlannedWeight, dense_candidate, tail_energy
from lowrank_onnx.choose import Choice
from lowrank_onnx.forms import Form
from lowrank_onnx.model_totals import NOTHING_SAVED
from lowrank_onnx.override_sites import Asked
from lowrank_onnx.passes.tie import own_choice
from lowrank_onnx.results import SiteResult
from lowrank_onnx.types import Site, SiteChoice, Tails, WeightRef
from lowrank_onnx.weights import SharedWeight

CURVE_POINTS = 32
"""Ranks at which the report states the error of a weight."""


def site_results(
    groups: Sequence[SharedWeight],
    weights: Sequence[PlannedWeight],
    choices: Sequence[Choice],
    written: Sequence[SiteChoice],
    positions: Mapping[str, int],
    lessons: Mapping[WeightRef, Lesson],
    asked: Mapping[WeightRef, Asked],
    max_error: float | None = None,
    saved: Mapping[str, int] = NOTHING_SAVED,
) -> dict[str, SiteResult]:
    """The report's rows by site name, in the order of the groups; `max_error` is what the outputs' error may be.

    `weights` are those of the plan, with the latency that was measured where it was. `saved` is by the first output of
    a site that stands for several nodes how many weights fewer it has than those.
    """
    excluded = exclusions(groups, lessons, max_error)
    done = {choice.site.name: choice for choice in written}
    return {
        site.name: _site_result(
            site,
            weight,
            choice,
            done.get(site.name),
            positions.get(site.name),
            lessons.get(site.weight, NO_LESSON),
            exclude=excluded.get(site.weight, ""),
            overridden=asked[site.weight].description if site.weight in asked else "",
            saved=saved.get(site.output, 0),
        )
        for group, weight, choice in zip(groups, weights, choices, strict=True)
        for site in group.sites
    }


def _site_result(
    site: Site,
    weight: PlannedWeight,
    choice: Choice,
    written: SiteChoice | None,
    positions: int | None,
    lesson: Lesson,
    *,
    exclude: str,
    overridden: str,
    saved: int,
) -> SiteResult:
    """One row of the report; `written` is None where the site stays dense."""
    candidate = choice.candidate
    dense, stored = site.shape.parameters, dense_candidate(weight).stored_bytes
    macs_before = macs_after = None
    if positions is not None:
        macs_after = site.dense_macs(positions)
        macs_before = macs_after + positions * saved
        macs_after = _macs(written, positions) if written else macs_after
    return SiteResult(
        name=site.name,
        op_type=site.op_type,
        weight=site.weight.name,
        dtype=site.weight.dtype,
        groups=site.shape.groups,
        in_features=site.own.shape.in_features,
        out_features=site.own.shape.out_features,
        form=candidate.form,
        rank=candidate.rank,
        reason=choice.reason,
        parameters_before=dense + saved,
        parameters_after=candidate.parameters if written else dense,
        macs_before=macs_before,
        macs_after=macs_after,
        relative_error=written.relative_error if written else None,
        spectral_error=written.spectral_error if written else None,
        solver=written.solver if written else "",
        input_error=_input_error(lesson, written),
        importance=lesson.importance,
        predicted_error=math.sqrt(candidate.error) if written and lesson.importance is not None else None,
        probes=_probes(lesson),
        exclude=exclude,
        error_curve=_error_curve(lesson, site.forms[0] if written is None else written.form),
        note=lesson.note,
        bytes_before=stored + saved * weight.itemsize,
        bytes_after=candidate.stored_bytes if written else stored,
        latency_before_ms=None if weight.latency is None else weight.latency(DENSE, None),
        latency_after_ms=weight.latency(candidate.form, candidate.rank) if written and weight.latency else None,
        overridden=overridden,
    )


def _macs(written: SiteChoice, positions: int) -> int:
    """What a node multiplies as it was written; one of several that share a pair goes by its own plain form."""
    own = own_choice(written)
    return own.form.macs(own.site.shape, own.rank, positions)


def _probes(lesson: Lesson) -> tuple[tuple[int, float], ...]:
    if lesson.sensitivity is None:
        return ()
    pairs = zip(lesson.sensitivity.ranks, lesson.sensitivity.output_errors, strict=True)
    return tuple((rank, math.sqrt(error)) for rank, error in pairs)


def _error_curve(lesson: Lesson, form: Form) -> tuple[tuple[int, float], ...]:
    """The error of a form's factorization at evenly spaced ranks, from 0 (all is lost) to the largest there is."""
    curve = lesson.curves.get(form.family)
    if curve is None:
        return ()
    if isinstance(curve, Tails):
        return tuple((rank, math.sqrt(error)) for rank, error in zip(curve.ranks, curve.errors, strict=True))
    largest = curve.values.shape[-1]
    ranks = sorted({round(largest * step / CURVE_POINTS) for step in range(CURVE_POINTS + 1)})
    return tuple((rank, math.sqrt(tail_energy(curve, rank))) for rank in ranks)


def _input_error(lesson: Lesson, written: SiteChoice | None) -> float | None:
    if written is None or not lesson.curves or not lesson.whitened:
        return None
    return math.sqrt(tail_energy(lesson.curves[written.form.family], written.rank))
