"""Figures of a compression: what each site and the whole model weigh before and after, and what ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx

from lowrank_onnx import __version__
from lowrank_onnx.absorb import Absorbed
from lowrank_onnx.calibration import NO_LESSON, Lesson
from lowrank_onnx.candidate_model import CandidateModel
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.installed import installed_version
from lowrank_onnx.model_io import Model
from lowrank_onnx.model_totals import totals, without_absorbed
from lowrank_onnx.no_sites import why_no_sites
from lowrank_onnx.outcome import allowed_error, find_reached
from lowrank_onnx.override_sites import Asked
from lowrank_onnx.results import CompressionResult, PlanTrial, Refinement, SearchStep
from lowrank_onnx.rollback import PUT_BACK
from lowrank_onnx.site_rows import site_results
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.types import Skipped, Verdict, WeightRef
from lowrank_onnx.unreached import unchanged_message
from lowrank_onnx.weights import SharedWeight, decoding_notes, written_before


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """Everything that the report needs once the choices are made; its verbs close a run in one of three ways."""

    source: str
    model: Model
    absorbed: tuple[Absorbed, ...]
    groups: tuple[SharedWeight, ...]
    skipped: tuple[Skipped, ...]
    lessons: Mapping[WeightRef, Lesson]
    positions: Mapping[str, int]
    feeds: Feeds | None
    weights: tuple[PlannedWeight, ...]
    asked: Mapping[WeightRef, Asked]
    choices: tuple[Choice, ...]
    search: tuple[SearchStep, ...]
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
            compressed_before=written_before(self.model.skeleton),
            why_none=why_no_sites(self.model.skeleton, self.skipped),
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
            self.groups,
            self.weights,
            self.choices,
            written,
            self.positions,
            self.lessons,
            self.asked,
            allowed_error(self.config),
            saved,
        )
        before = totals(self.model.skeleton, self.model.file_bytes, self.groups, None, self.positions, saved)
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
            already_compressed=written_before(self.model.skeleton),
            trials=tuple(self.trials),
            refinement=self.refinement,
            notes=(
                *self.notes,
                *(one.note for one in (*self.absorbed, *(candidate.absorbed if candidate else ()))),
                *decoding_notes(dict.fromkeys(choice.site.weight for choice in written)),
            ),
        )

    def _pass_seconds(self, verdict: Verdict | None) -> float | None:
        """Of one pass of the original over all feeds, from the time that it took in the comparison."""
        if verdict is None or verdict.latency is None or self.feeds is None:
            return None
        return verdict.latency.original.median_ms / 1000 * len(self.feeds)


def versions() -> dict[str, str]:
    """Versions of this package, of what it stands on, and the machine; "" for what is not installed."""
    found = {"lowrank-onnx": __version__}
    for name in ("numpy", "scipy", "onnx", "onnx-graphsurgeon"):
        found[name] = installed_version(name) or ""
    found["onnxruntime"] = installed_version("onnxruntime") or installed_version("onnxruntime-gpu") or ""
    found["cupy"] = next(filter(None, map(installed_version, ("cupy-cuda12x", "cupy-cuda13x", "cupy"))), "")
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    found["cpus"] = str(os.cpu_count() or "")
    return found
