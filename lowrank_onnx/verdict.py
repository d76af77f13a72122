"""What validation finds, as frozen data: how far the outputs are off, a task metric, latency, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-6
"""Relative error of numbers up to which they say nothing of what was rewritten."""


@dataclass(frozen=True, slots=True)
class OutputStatistics:
    """How far one output of the candidate is from the original's, over all feeds.

    `relative_l2` is ||y' - y|| / ||y||; `sqnr_db` is 20 log10(||y|| / ||y' - y||), infinite when equal; `cosine` is
    over all elements. These, and `max_abs`, are None for answers: integers, bools and strings, of which only the share
    that is equal means anything. `top1_agreement` is that share, and for floats the share of rows with the same top
    class, None where the last axis is no class axis. `problems` lists what makes the comparison fail by itself (NaN,
    infinity, shape or dtype change); it is empty in a sound comparison, and else the figures are the worst there are.

    `top1_rows` is how many rows of a float output of rank 2, or answers with one entry a row, were judged, 0 for all
    other outputs: where one row is one sample, `top1_bound` is what the agreement is at least, at 95 % confidence, for
    samples drawn like those of the feeds (Clopper and Pearson); None without such rows or with synthetic feeds.

    `logits` says that all figures but the agreement are of the output without each row's mean. `common_level` is the
    share of the original's energy that these means are; None where rows mean nothing, which is known only of logits
    and, without being told, for rows of at least 16 entries in outputs of rank 2 or 3.
    """

    name: str
    dtype: str
    elements: int
    max_abs: float | None
    relative_l2: float | None
    sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    problems: tuple[str, ...]
    top1_rows: int = 0
    top1_bound: float | None = None
    logits: bool = False
    common_level: float | None = None

    @property
    def is_answer(self) -> bool:
        """Whether it was compared entry by entry for equality, and not as numbers."""
        return self.relative_l2 is None

    @property
    def error(self) -> float:
        """The relative L2 error, or the share of the answers that changed."""
        if self.relative_l2 is not None:
            return self.relative_l2
        return 1.0 if self.top1_agreement is None else round(1.0 - self.top1_agreement, 12)


def judged_by_answers(outputs: Sequence[OutputStatistics]) -> bool:
    """Whether only answers can tell what was rewritten: there are no numbers, or none that moved beyond rounding."""
    return any(output.is_answer for output in outputs) and all(
        output.relative_l2 is None or output.relative_l2 <= ROUNDING for output in outputs
    )


def overall_error(outputs: Sequence[OutputStatistics]) -> float:
    """The largest relative L2 error of any output; the largest share of changed answers where only answers can tell.

    Infinite where nothing was compared, and where a comparison has a problem.
    """
    if not outputs or any(output.problems for output in outputs):
        return math.inf
    answers = judged_by_answers(outputs)
    return max(output.error for output in outputs if answers or not output.is_answer)


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """A task metric of the original and of a candidate, on the metric's own data.

    Attributes
    ----------
    name, higher_is_better : of the metric.
    original, candidate : the metric of each.
    samples : how many samples the metric told apart; None where it is one number, of whose sampling error nothing is
        known. The following are None then, too.
    lost, gained : samples on which only the original is right, and on which only the candidate is.
    candidate_bound : what the metric of the candidate is at the worst on data drawn like the samples (Clopper and
        Pearson).
    drop_bound : what the drop is at the most on such data.
    confidence : of each of the two bounds, over all models of the search that were judged by the same samples.
    """

    name: str
    higher_is_better: bool
    original: float
    candidate: float
    samples: int | None = None
    lost: int | None = None
    gained: int | None = None
    candidate_bound: float | None = None
    drop_bound: float | None = None
    confidence: float | None = None

    @property
    def drop(self) -> float:
        """How much worse the candidate is, in the metric's own unit; negative where it is better."""
        return self.original - self.candidate if self.higher_is_better else self.candidate - self.original

    @property
    def judged_drop(self) -> float:
        """What a limit is held against: the bound of the drop where there is one, else the drop."""
        return self.drop if self.drop_bound is None else self.drop_bound

    def within(self, limit: float) -> bool:
        """Whether the drop is at most `limit`, up to rounding."""
        return self.judged_drop <= limit + 1e-12


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one model, in milliseconds for one run on one feed."""

    median_ms: float
    iqr_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Paired timing, interleaved run by run, or block by block where the models took turns.

    `speedup` = original / candidate (above 1: the candidate is faster), the median of the paired ratios, with a
    `confidence` interval from `speedup_low` to `speedup_high`.
    """

    original: Timing
    candidate: Timing
    speedup: float
    speedup_low: float
    speedup_high: float
    confidence: float
    pairs: int

    @property
    def faster(self) -> bool:
        """True where the whole interval lies above 1."""
        return self.speedup_low > 1.0


@dataclass(frozen=True, slots=True)
class ProviderNodes:
    """How many nodes of the original and of the candidate an execution provider runs."""

    provider: str
    original: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found. `passed` is False whenever `failures` is not empty; `metric` is None without a metric.

    `nodes` says what ran where; it is empty where onnxruntime doesn't tell. `notes` are sentences that a reader of the
    figures needs.
    """

    outputs: tuple[OutputStatistics, ...]
    latency: LatencyComparison | None
    feeds: str
    synthetic: bool
    samples: int
    providers: tuple[str, ...]
    failures: tuple[str, ...]
    metric: MetricComparison | None = None
    nodes: tuple[ProviderNodes, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True only if something was compared and nothing failed."""
        return not self.failures and bool(self.outputs)

    @property
    def relative_error(self) -> float:
        """The error of all outputs together, as `overall_error` has it."""
        return overall_error(self.outputs)
