"""What validation found, as a person reads it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from rich.console import Group, RenderableType

from lowrank_onnx.report.numbers import count, fraction, plural, significant
from lowrank_onnx.report.tables import blocks, heading, table, text
from lowrank_onnx.types import (
    LatencyComparison,
    MetricComparison,
    OutputStatistics,
    ProviderNodes,
    Verdict,
    judged_by_answers,
)

TELLING_LEVEL = 0.9
"""The share of an output's energy from which on a level common to each row is worth a line."""


def validate_report(original: str, candidate: str, verdict: Verdict) -> Group:
    """The comparison of two given models."""
    return blocks((text(f"{candidate} against {original}"), verdict_block(verdict)))


def verdict_block(verdict: Verdict) -> Group:
    """The comparison of the outputs, the latency, and each failure on its own line."""
    parts: list[RenderableType] = [heading(f"outputs against the original, on {feeds_phrase(verdict)}")]
    if verdict.outputs:
        rows = [_output_row(output) for output in verdict.outputs]
        parts.append(table(("output", "relative L2", "max abs", "SQNR dB", "cosine", "top-1"), rows))
    else:
        parts.append(text("nothing was compared", "bold red"))
    parts += [text(line) for line in (*answer_lines(verdict), *level_lines(verdict), *top1_bounds(verdict))]
    if verdict.metric is not None:
        parts += [text(line) for line in metric_lines(verdict.metric)]
    if verdict.latency is not None:
        parts.append(text(latency_line(verdict.latency, verdict)))
    if verdict.nodes:
        parts.append(text(placement_line(verdict.nodes)))
    parts += [text(f"note: {note}") for note in verdict.notes]
    parts += [text(f"failed: {failure}", "bold red") for failure in verdict.failures]
    if verdict.passed:
        parts.append(text("validation passed", "green"))
    return Group(*parts)


def feeds_phrase(verdict: Verdict) -> str:
    """On what the figures stand; synthetic feeds are called that."""
    if verdict.synthetic and "synthetic" not in verdict.feeds:
        return f"synthetic feeds: {verdict.feeds}"
    return verdict.feeds


def output_label(output: OutputStatistics) -> str:
    """The output's name, and how it was compared where that isn't by its values as they are."""
    return f"{output.name} (as logits)" if output.logits else output.name


def _output_row(output: OutputStatistics) -> tuple[str, ...]:
    return (
        output_label(output),
        significant(output.relative_l2),
        significant(output.max_abs),
        significant(output.sqnr_db) if output.sqnr_db in (math.inf, -math.inf) else fraction(output.sqnr_db, 1),
        fraction(output.cosine),
        fraction(output.top1_agreement),
    )


def answer_lines(verdict: Verdict) -> list[str]:
    """How outputs that are answers were compared, and whether their share stands for the error; none without them."""
    answers = [output.name for output in verdict.outputs if output.is_answer]
    if not answers:
        return []
    if judged_by_answers(verdict.outputs):
        meaning = "no number tells what was rewritten, so the share of them that changed counts as the error"
    else:
        meaning = "they don't count in the error; --min-top1 is a gate for them"
    return [f"answers, not numbers: {', '.join(answers)}. top-1 is the share that is equal; {meaning}"]


def level_lines(verdict: Verdict) -> list[str]:
    """Which outputs may be logits that were not declared, one sentence for each; none where nothing speaks for it."""
    return [
        f"{fraction(100.0 * output.common_level, 1)} % of the energy of {output.name} is a level common to each row: "
        f"if only a softmax reads it, --logits {shlex.quote(output.name)} compares what counts"
        for output in verdict.outputs
        if not output.logits and output.common_level is not None and output.common_level > TELLING_LEVEL
    ]


def top1_bounds(verdict: Verdict) -> list[str]:
    """What the agreement is at least beyond the feeds, one sentence for each output that tells."""
    return [
        f"{'answers' if output.is_answer else 'top-1'} of {output.name}: the same for at least "
        f"{fraction(output.top1_bound)} of data drawn like these {count(output.top1_rows)} samples "
        "(95 % confidence, Clopper-Pearson)"
        for output in verdict.outputs
        if output.top1_bound is not None
    ]


def metric_lines(metric: MetricComparison) -> list[str]:
    """The task metric of both models, and what that proves."""
    better = "" if metric.higher_is_better else " (lower is better)"
    first = (
        f"metric {metric.name}{better}: {significant(metric.original, 4)} -> {significant(metric.candidate, 4)}, "
        f"drop {significant(metric.drop)}"
    )
    if metric.samples is None:
        return [f"{first}; a plain number, so nothing is known of its sampling error"]
    end = "at least" if metric.higher_is_better else "at most"
    beyond = (
        f"for data drawn like them: drop at most {significant(metric.drop_bound)}, metric {end} "
        f"{significant(metric.candidate_bound, 4)} (95 % confidence each; exact paired bound, Clopper-Pearson)"
    )
    return [
        f"{first}: of {count(metric.samples)} samples {count(metric.lost)} lost and {count(metric.gained)} gained",
        beyond,
    ]


def latency_line(latency: LatencyComparison, verdict: Verdict) -> str:
    """The paired measurement in one sentence."""
    before, after = latency.original, latency.candidate
    providers = ", ".join(verdict.providers)
    return (
        f"latency: {speed_phrase(latency)} ({latency.confidence * 100:g} % interval "
        f"{latency.speedup_low:.2f}-{latency.speedup_high:.2f}), "
        f"{significant(before.median_ms)} ms -> {significant(after.median_ms)} ms a run "
        f"(IQR {significant(before.iqr_ms)} and {significant(after.iqr_ms)} ms), "
        f"{count(latency.pairs)} pairs, {providers}{', synthetic feeds' if verdict.synthetic else ''}"
    )


def placement_line(nodes: Sequence[ProviderNodes]) -> str:
    """What ran where."""
    placed = ", ".join(f"{n.provider} {count(n.original)} -> {plural(n.candidate, 'node')}" for n in nodes)
    return f"ran on: {placed}"


def speed_phrase(latency: LatencyComparison) -> str:
    """Faster, slower, or no difference that could be measured."""
    if latency.faster:
        return f"{latency.speedup:.2f}x faster"
    if latency.speedup_high < 1.0:
        return f"{latency.speedup:.2f}x the speed, slower than the original"
    return f"{latency.speedup:.2f}x, no measurable difference"
