"""Figures of a compression: what each site and the whole model weigh before and after, and what ran."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import onnx

from lowrank_onnx import __version__
from lowrank_onnx.absorb import Absorbed
from lowrank_onnx.calibration import NO_LESSON, Lesson, exclusions
from lowrank_onnx.candidate_model import CandidateModel
from lowrank_onnx.candidates import PlannedWeight, tail_energy
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.forms import Form
from lowrank_onnx.model_io import Model
from lowrank_onnx.model_totals import NOTHING_SAVED, totals, without_absorbed
from lowrank_onnx.outcome import allowed_error, find_reached
from lowrank_onnx.results import CompressionResult, PlanTrial, Refinement, SearchStep, SiteResult
from lowrank_onnx.rollback import PUT_BACK
from lowrank_onnx.types import Site, SiteChoice, Skipped, Tails, Verdict, WeightRef
from lowrank_onnx.unreached import unchanged_message
from lowrank_onnx.weights import SharedWeight, decoding_notes, written_before

CURVE_POINTS = 32
"""Ranks at which the report states the error of a weight."""


class StageClock:
    """Adds up the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time spent inside towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """Everything that the report needs once the choices are made; its verbs close a run in one of three ways."""

    source: str
    original: Model
    model: Model
    absorbed: tuple[Absorbed, ...]
    groups: tuple[SharedWeight, ...]
    skipped: tuple[Skipped, ...]
    lessons: Mapping[WeightRef, Lesson]
    positions: Mapping[str, int]
    feeds: Feeds | None
    weights: tuple[PlannedWeight, ...]
    choices: tuple[Choice, ...]
    search: tuple[SearchStep, ...]
    calibration_feeds: int
    config: Config
    clock: StageClock
    notes: tuple[str, ...] = ()
    trials: Sequence[PlanTrial] = ()
    refinement: Refinement | None = None

    def unchanged(self) -> CompressionResult:
        """No weight was replaced: the model is left as it is."""
        message = unchanged_message(
            self.config,
            self.weights,
            [self.lessons.get(group.weight, NO_LESSON).curves for group in self.groups],
            self.choices,
            self.search,
            compressed_before=written_before(self.original.skeleton),
        )
        return self._result("unchanged", message)

    def rejected(self, candidate: CandidateModel, file_bytes: int, verdict: Verdict) -> CompressionResult:
        """The candidate did not hold; nothing is written."""
        message = "not written: " + "; ".join(verdict.failures) + self._put_back("had been put back")
        return self._result("rejected", message, candidate, file_bytes, verdict)

    def written(
        self,
        candidate: CandidateModel,
        file_bytes: int,
        verdict: Verdict | None,
        *,
        output: Path | None = None,
        model: onnx.ModelProto | None = None,
    ) -> CompressionResult:
        """The candidate held and is at `output`, or in `model`."""
        message = f"written to {output}" if output else "compressed in memory"
        if verdict is None:
            message += ", not validated"
        message += self._put_back("put back, since the model was not faster with all of them low-rank")
        result = self._result("written", message, candidate, file_bytes, verdict)
        return replace(result, output=None if output is None else str(output), model=model)

    def _put_back(self, outcome: str) -> str:
        """What to add to a message where weights were put back."""
        count = sum(choice.reason.startswith(PUT_BACK) for choice in self.choices)
        return f"; {count} weight{'s' if count > 1 else ''} that gained least {outcome}" if count else ""

    def _result(
        self,
        status: Literal["written", "rejected", "unchanged"],
        message: str,
        candidate: CandidateModel | None = None,
        file_bytes: int = 0,
        verdict: Verdict | None = None,
    ) -> CompressionResult:
        written = () if candidate is None else candidate.written
        saved = {one.output: one.saved for one in self.absorbed}
        rows = site_results(
            self.groups, self.choices, written, self.positions, self.lessons, allowed_error(self.config), saved
        )
        original = self.original
        before = totals(original.skeleton, original.file_bytes, self.groups, None, self.positions, saved)
        after = None
        if candidate is not None:
            after = totals(candidate.model.skeleton, file_bytes, self.groups, rows, self.positions)
            after = without_absorbed(after, candidate.absorbed, self.groups, self.positions)
        sites = tuple(rows.values())
        return CompressionResult(
            status=status,
            output=None,
            input=self.source,
            config=self.config,
            sites=sites,
            skipped=self.skipped,
            before=before,
            after=after,
            verdict=verdict,
            reached=find_reached(self.config, before, after, sites, self.weights, self.choices, verdict),
            search=self.search,
            message=message,
            seconds=self.clock.seconds,
            pass_seconds=self._pass_seconds(verdict),
            versions=versions(),
            feeds="" if self.feeds is None else self.feeds.description,
            synthetic=self.feeds is not None and self.feeds.synthetic,
            already_compressed=written_before(self.original.skeleton),
            trials=tuple(self.trials),
            refinement=self.refinement,
            notes=(
                *self.notes,
                *(one.note for one in (*self.absorbed, *(candidate.absorbed if candidate else ()))),
                *decoding_notes(dict.fromkeys(choice.site.weight for choice in written)),
            ),
        )

    def _pass_seconds(self, verdict: Verdict | None) -> float | None:
        """Of one pass of the original over the calibration feeds, from the time that it took in the comparison."""
        if verdict is None or verdict.latency is None:
            return None
        return verdict.latency.original.median_ms / 1000 * self.calibration_feeds


def site_results(
    groups: Sequence[SharedWeight],
    choices: Sequence[Choice],
    written: Sequence[SiteChoice],
    positions: Mapping[str, int],
    lessons: Mapping[WeightRef, Lesson],
    max_error: float | None = None,
    saved: Mapping[str, int] = NOTHING_SAVED,
) -> dict[str, SiteResult]:
    """The report's rows by site name, in the order of the groups.

    `max_error` is what the outputs' error may be; `saved` is by the first output of a site that stands for several
    nodes how many weights fewer it has than those.
    """
    excluded = exclusions(groups, lessons, max_error)
    done = {choice.site.name: choice for choice in written}
    return {
        site.name: _site_result(
            site,
            choice,
            done.get(site.name),
            positions.get(site.name),
            lessons.get(site.weight, NO_LESSON),
            excluded.get(site.weight, ""),
            saved.get(site.output, 0),
        )
        for group, choice in zip(groups, choices, strict=True)
        for site in group.sites
    }


def _site_result(
    site: Site,
    choice: Choice,
    written: SiteChoice | None,
    positions: int | None,
    lesson: Lesson,
    exclude: str,
    saved: int,
) -> SiteResult:
    """One row of the report; `written` is None where the site stays dense."""
    candidate = choice.candidate
    dense = site.shape.parameters
    before = dense + saved
    after = candidate.parameters if written else dense
    macs_after = None
    if positions is not None:
        macs_after = written.form.macs(site.shape, written.rank, positions) if written else positions * dense
    return SiteResult(
        name=site.name,
        op_type=site.op_type,
        weight=site.weight.name,
        dtype=site.weight.dtype,
        groups=site.shape.groups,
        in_features=site.shape.in_features,
        out_features=site.shape.out_features,
        form=candidate.form,
        rank=candidate.rank,
        reason=choice.reason,
        parameters_before=before,
        parameters_after=after,
        macs_before=None if positions is None else positions * before,
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
    )


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


def versions() -> dict[str, str]:
    """Versions of this package, of what it stands on, and the machine; "" for what is not installed."""
    found = {"lowrank-onnx": __version__}
    for name in ("numpy", "scipy", "onnx", "onnx-graphsurgeon"):
        found[name] = _version(name)
    found["onnxruntime"] = _version("onnxruntime") or _version("onnxruntime-gpu")
    found["cupy"] = _version("cupy-cuda12x") or _version("cupy-cuda13x") or _version("cupy")
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    found["cpus"] = str(os.cpu_count() or "")
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
