"""A sweep as a person reads it: one row a point."""

from __future__ import annotations

from rich.console import Group

from lowrank_onnx.report.compress_text import compress_report
from lowrank_onnx.report.numbers import UNKNOWN, kept, significant, size
from lowrank_onnx.report.tables import blocks, budget_flag, heading, table, text
from lowrank_onnx.report.verdict_text import feeds_phrase
from lowrank_onnx.results import SweepPoint, SweepResult
from lowrank_onnx.types import MetricComparison


def sweep_columns(sweep: SweepResult) -> tuple[str, ...]:
    """The headings of a sweep's table; those of a task metric where there is one."""
    metric = ("metric", "drop") if _metrics(sweep) else ()
    return ("budget", "file", "MACs", "speed", "error", "top-1", *metric, "outcome")


def sweep_legend(sweep: SweepResult) -> str:
    """What the columns mean."""
    legend = (
        "MACs: share kept. error: relative L2 error of the outputs. top-1: share of samples with the same first "
        "answer. *: no other point is at least as small, as fast and as close."
    )
    metrics = _metrics(sweep)
    if not metrics:
        return legend
    bounded = "; at most, for data drawn like its samples, with 95 % confidence over all points"
    certain = bounded if any(metric.drop_bound is not None for metric in metrics) else ""
    first = metrics[0]
    return f"{legend} metric: {first.name}, {significant(first.original, 4)} originally; drop: how much worse{certain}."


def sweep_report(result: SweepResult, *, verbose: bool = False) -> Group:
    """The table of the points, and the outcome; `verbose` puts the whole report of each point before them."""
    rows = [sweep_row(index, point, result) for index, point in enumerate(result.points)]
    verdict = next((p.result.verdict for p in result.points if p.result.verdict is not None), None)
    on = f", on {feeds_phrase(verdict)}" if verdict is not None else ""
    details = [
        block
        for index, point in enumerate(result.points if verbose else (), 1)
        for block in (heading(f"point {index}"), compress_report(point.result, verbose=True))
    ]
    return blocks(
        (
            *details,
            heading(f"{result.input} at {len(rows)} budgets{on}"),
            table(sweep_columns(result), rows),
            text(sweep_legend(result)),
            *(text(f"point {i}: {p.result.message}") for i, p in enumerate(result.points, 1) if not _held(p)),
            text(result.message, "bold green" if result.picked is not None else "bold yellow"),
        )
    )


def sweep_row(index: int, point: SweepPoint, sweep: SweepResult) -> tuple[str, ...]:
    """The cells of one point, under `sweep_columns`."""
    result = point.result
    flag, value = budget_flag(result.config.budget)
    verdict, after = result.verdict, result.after
    latency = verdict.latency if verdict is not None else None
    agreements = [o.top1_agreement for o in (verdict.outputs if verdict else ()) if o.top1_agreement is not None]
    metric = verdict.metric if verdict else None
    task = (significant(metric.candidate, 4), significant(metric.judged_drop)) if metric else (UNKNOWN, UNKNOWN)
    outcome = "written" if index == sweep.picked else "" if _held(point) else result.status
    mark = f"{'*' if point.on_front else ''} {outcome}".strip()
    return (
        f"{flag} {value:g}",
        size(after.file_bytes) if after else UNKNOWN,
        kept(result.before.macs, after.macs) if after else UNKNOWN,
        f"{latency.speedup:.2f}x" if latency else UNKNOWN,
        significant(verdict.relative_error) if verdict else UNKNOWN,
        f"{min(agreements):.4f}" if agreements else UNKNOWN,
        *(task if _metrics(sweep) else ()),
        mark,
    )


def _metrics(sweep: SweepResult) -> list[MetricComparison]:
    verdicts = [point.result.verdict for point in sweep.points]
    return [verdict.metric for verdict in verdicts if verdict is not None and verdict.metric is not None]


def _held(point: SweepPoint) -> bool:
    return point.result.status == "written"
