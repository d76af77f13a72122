"""The demo's one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group

from lowrank_onnx.report.numbers import UNKNOWN, count, short_count, significant, size
from lowrank_onnx.report.tables import blocks, budget_flag, heading, table, text
from lowrank_onnx.results import DemoRow
from lowrank_onnx.types import LatencyComparison

FIGURES = 5
"""Rows of the table for each model."""


def demo_report(rows: Sequence[DemoRow], *, kept: bool) -> Group:
    """Accuracy, size, MACs and latency of each shipped model, before and after.

    `kept` says whether the compressed models are still there when the reader sees this.
    """
    cells: list[tuple[str, ...]] = []
    for row in rows:
        cells += _model_rows(row)
    images = ", ".join(sorted({f"{row.images:,}" for row in rows}))
    told = [row for row in rows if kept or row.result.status != "written"]
    outcome = Group(*(text(f"{row.model}: {row.result.message}") for row in told)) if told else None
    return blocks(
        (
            heading(f"Fashion-MNIST, accuracy on {images} test images that the compression has not seen"),
            table(("model", "figure", "before", "after", "change"), cells, left=2, block=FIGURES),
            outcome,
            None if kept else text("the compressed models were deleted: --out DIR keeps them", "dim"),
        )
    )


def _model_rows(row: DemoRow) -> list[tuple[str, ...]]:
    result, after = row.result, row.result.after
    flag, value = budget_flag(result.config.budget)
    figures = [
        ("top-1 accuracy", *_accuracy(row)),
        ("file", *_ratio(result.before.file_bytes, after.file_bytes if after else None, size)),
        ("parameters", *_ratio(result.before.parameters, after.parameters if after else None, count)),
        (f"MACs, {row.batch} images", *_ratio(result.before.macs, after.macs if after else None, short_count)),
        (f"latency, {row.batch} images", *_latency(row)),
    ]
    names = (row.model, f"{flag} {value:g}", *([""] * len(figures)))
    return [(name, *figure) for name, figure in zip(names, figures, strict=False)]


def _accuracy(row: DemoRow) -> tuple[str, str, str]:
    before = f"{row.accuracy_before * 100:.2f} %"
    if row.accuracy_after is None:
        return before, UNKNOWN, UNKNOWN
    change = (row.accuracy_after - row.accuracy_before) * 100
    return before, f"{row.accuracy_after * 100:.2f} %", f"{change:+.2f} points"


def _ratio(before: int | None, after: int | None, show: Callable[[int | None], str]) -> tuple[str, str, str]:
    change = f"{before / after:.2f}x smaller" if before and after else UNKNOWN
    return show(before), show(after), change


def _latency(row: DemoRow) -> tuple[str, str, str]:
    latency = row.result.verdict.latency if row.result.verdict else None
    if latency is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    before, after = (f"{significant(timing.median_ms)} ms" for timing in (latency.original, latency.candidate))
    return before, after, _speed(latency)


def _speed(latency: LatencyComparison) -> str:
    if latency.faster:
        return f"{latency.speedup:.2f}x faster"
    return f"{1 / latency.speedup:.2f}x slower" if latency.speedup_high < 1.0 else "no difference"
