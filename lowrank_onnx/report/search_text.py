"""What a search tried, and what came of what was asked: headings and rows, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lowrank_onnx.report.numbers import fraction, significant
from lowrank_onnx.results import Reached, SearchStep

Grid: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Headings, and rows of as many cells."""


def search_table(search: Sequence[SearchStep]) -> Grid:
    """The attempts in order; columns of speed and of drops only in the searches that measure them."""
    raced = any(step.speedup is not None for step in search)
    measured = any(step.drop is not None for step in search)
    bounded = any(step.judged_drop != step.drop for step in search)
    columns = (
        "attempt",
        "share kept",
        "output error",
        *(["speed"] if raced else []),
        *(["drop"] if measured else []),
        *(["at most"] if bounded else []),
        "accepted",
    )
    rows = tuple(
        (
            f"{index}",
            fraction(step.keep),
            significant(step.error),
            *([f"{significant(step.speedup)}x"] if raced else []),
            *([significant(step.drop)] if measured else []),
            *([significant(step.judged_drop)] if bounded else []),
            "yes" if step.accepted else "no",
        )
        for index, step in enumerate(search, start=1)
    )
    return columns, rows


def reached_table(reached: Sequence[Reached]) -> Grid:
    """Each figure as asked, as predicted and as reached."""
    rows = tuple(
        (row.figure, significant(row.asked, 4), significant(row.predicted), significant(row.reached)) for row in reached
    )
    return ("", "asked", "predicted", "reached"), rows
