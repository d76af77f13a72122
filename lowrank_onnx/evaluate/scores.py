"""Two models by a user's own metric, and what that proves beyond the samples that it looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.confidence import CONFIDENCE, drop_at_most, share_at_least, share_at_most
from lowrank_onnx.metric import Metric, Score
from lowrank_onnx.types import MetricComparison


class Runnable(Protocol):
    """A session."""

    def run(self, feed: Mapping[str, Any], /) -> Mapping[str, Any]:
        """Run once; all outputs."""
        ...


@dataclass(frozen=True, slots=True)
class MetricJudge:
    """Holds models against the original's score.

    Attributes
    ----------
    metric, original : the metric, and what it says of the original.
    models : how many models a search may try with the same samples. The confidence is shared among them, since the one
        that is taken is the one that looked good (Bonferroni).
    """

    metric: Metric
    original: Score
    models: int = 1

    def __call__(self, candidate: Runnable) -> MetricComparison:
        """Measure and compare a candidate (`UsageError` where the metric fails)."""
        return compare_scores(self.metric, self.original, self.metric.measure(candidate.run), models=self.models)

    def check_feasible(self, limit: float) -> None:
        """Refuse a limit that the metric's samples can't prove even of a model that makes no mistake (`UsageError`)."""
        samples = None if self.original.samples is None else len(self.original.samples)
        if samples is None or self._least_drop(samples) <= limit:
            return
        raise UsageError(
            f"--max-drop {limit:g}: {samples} samples of {self.metric.name} can prove a drop of at most "
            f"{self._least_drop(samples):.3g}; give it about {math.ceil(samples * self._least_drop(samples) / limit)} "
            "samples, or let it return a number, which is taken as it is"
        )

    def _least_drop(self, samples: int) -> float:
        return drop_at_most(0, 0, samples, 1.0 - (1.0 - CONFIDENCE) / self.models)


def judge_by(metric: Metric, original: Runnable, models: int, limit: float | None) -> MetricJudge:
    """Measure the original, and refuse a limit on the drop that can't be proved (`UsageError`); None is no limit."""
    judge = MetricJudge(metric, metric.measure(original.run), models)
    if limit is not None:
        judge.check_feasible(limit)
    return judge


def compare_scores(metric: Metric, original: Score, candidate: Score, *, models: int = 1) -> MetricComparison:
    """Compare what a metric says of two models; `MetricJudge` explains `models`.

    Raises
    ------
    UsageError
        The metric told samples apart for one model only, or not the same number of them.
    """
    compared = MetricComparison(metric.name, metric.higher_is_better, original.value, candidate.value)
    if original.samples is None and candidate.samples is None:
        return compared
    if original.samples is None or candidate.samples is None or len(original.samples) != len(candidate.samples):
        raise UsageError(f"metric {metric.name}: expected one result for each of the same samples from every model")
    before, after = original.samples, candidate.samples
    if not metric.higher_is_better:
        before, after = ~before, ~after
    lost, gained = int(np.count_nonzero(before & ~after)), int(np.count_nonzero(after & ~before))
    return share_confidence(replace(compared, samples=len(before), lost=lost, gained=gained), models)


def share_confidence(compared: MetricComparison, models: int) -> MetricComparison:
    """The comparison with bounds that hold for as many models at once (Bonferroni); `MetricJudge` explains `models`.

    Without samples there are no bounds, and it is as it was.
    """
    samples, lost, gained = compared.samples, compared.lost, compared.gained
    if samples is None or lost is None or gained is None:
        return compared
    level = 1.0 - (1.0 - CONFIDENCE) / models
    ones = round(compared.candidate * samples)
    bound = share_at_least if compared.higher_is_better else share_at_most
    return replace(
        compared,
        candidate_bound=bound(ones, samples, level),
        drop_bound=drop_at_most(lost, gained, samples, level),
        confidence=CONFIDENCE,
    )
