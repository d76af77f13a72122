"""A sweep as a person reads it: one row a point."""

from __future__ import annotations

from rich.console import Group

from lowrank_onnx.report.numbers import UNKNOWN, kept, significant, size
from lowrank_onnx.report.tables import blocks, budget_flag, heading, table, text
from lowrank_onnx.report.verdict_text import feeds_phrase
from lowrank_onnx.results import SweepPoint, SweepResult

COLUMNS = ("budget", "file", "MACs", "speed", "error", "top-1", "")
"""The headings of a sweep's table."""


def sweep_report(result: SweepResult) -> Group:
    """The table of the points, and the outcome."""
    rows = [sweep_row(index, point, result) for index, point in enumerate(result.points)]
    verdict = next((p.result.verdict for p in result.points if p.result.verdict is not None), None)
    on = f", on {feeds_phrase(verdict)}" if verdict is not None else ""
    return blocks(
        (
            heading(f"{result.input} at {len(rows)} budgets{on}"),
            table(COLUMNS, rows),
            text("error: relative L2 error of the outputs. *: no other point is better in every figure."),
            *(text(f"point {i}: {p.result.message}") for i, p in enumerate(result.points, 1) if not _held(p)),
            text(result.message, "bold green" if result.picked is not None else "bold yellow"),
        )
    )


def sweep_row(index: int, point: SweepPoint, sweep: SweepResult) -> tuple[str, ...]:
    """The cells of one point, under `COLUMNS`."""
    result = point.result
    flag, value = budget_flag(result.config.budget)
    verdict, after = result.verdict, result.after
    latency = verdict.latency if verdict is not None else None
    agreements = [o.top1_agreement for o in (verdict.outputs if verdict else ()) if o.top1_agreement is not None]
    mark = "written" if index == sweep.picked else "*" if point.on_front else "" if _held(point) else result.status
    return (
        f"{flag} {value:g}",
        size(after.file_bytes) if after else UNKNOWN,
        kept(result.before.macs, after.macs) if after else UNKNOWN,
        f"{latency.speedup:.2f}x" if latency else UNKNOWN,
        significant(verdict.relative_error) if verdict else UNKNOWN,
        f"{min(agreements):.4f}" if agreements else UNKNOWN,
        mark,
    )


def _held(point: SweepPoint) -> bool:
    return point.result.status == "written"
