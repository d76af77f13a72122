"""The few building blocks of which every text report is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lowrank_onnx.config import (
    Alpha,
    Budget,
    Energy,
    FixedRank,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Speedup,
)
from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.numbers import plural
from lowrank_onnx.results import InspectedSite, SiteResult
from lowrank_onnx.types import Skipped

LISTED_ROWS = 40
"""Rows of a table beyond which only ``--verbose`` shows the rest."""

LISTED_NAMES = 3
"""Names shown of the nodes that share one reason, beyond which only ``--verbose`` shows the rest."""

_NAME_WIDTH = 10


_HANGING = 2
"""Columns by which the later lines of an indented paragraph stand further in than its first."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words that keep their indent where they are wrapped, without a blank at any line's end.

    rich's own Text loses the indent, and leaves the blank at which it broke the line.
    """

    content: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        words = self.content.lstrip(" ")
        first = len(self.content) - len(words)
        later = first + _HANGING if first else 0
        width = max(options.max_width - later, 1)
        for number, line in enumerate(Text(words, style=self.style).wrap(console, width)):
            line.rstrip()
            yield Text(" " * (later if number else first)).append_text(line)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self.content))


def text(content: str, style: str = "") -> Paragraph:
    """A paragraph with nothing in it that a terminal or rich's markup would obey."""
    return Paragraph(printable(content), style)


def heading(content: str) -> Paragraph:
    """A line above a block."""
    return text(content, "bold")


def blocks(parts: Iterable[RenderableType | None]) -> Group:
    """The parts that are there, with an empty line between them."""
    present = [part for part in parts if part is not None]
    spaced: list[RenderableType] = []
    for index, part in enumerate(present):
        spaced += [Text(""), part] if index else [part]
    return Group(*spaced)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, block: int = 0) -> Table:
    """A plain table.

    Parameters
    ----------
    columns : the headings; the first column holds names, which are folded where they are too long.
    rows : the cells, one string for each column.
    left : how many leading columns are aligned to the left; figures go to the right.
    block : a line is drawn after every so many rows; 0 draws none.
    """
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for index, column in enumerate(columns):
        result.add_column(
            column,
            justify="left" if index < left else "right",
            overflow="fold",
            no_wrap=index > 0,
            min_width=_NAME_WIDTH if index == 0 else None,
        )
    for number, row in enumerate(rows, start=1):
        result.add_row(*(Text(printable(cell)) for cell in row), end_section=block > 0 and number % block == 0)
    return result


_Row = TypeVar("_Row")


def largest(rows: Sequence[_Row], weights: Callable[[_Row], int], *, verbose: bool) -> list[_Row]:
    """The rows to show, in their order: all, or the `LISTED_ROWS` with the most weights."""
    if verbose or len(rows) <= LISTED_ROWS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda index: -weights(rows[index]))
    return [rows[index] for index in sorted(order[:LISTED_ROWS])]


def hidden_rows(total: int, noun: str, *, verbose: bool) -> Paragraph | None:
    """The line under a table that was cut."""
    if verbose or total <= LISTED_ROWS:
        return None
    more = plural(total - LISTED_ROWS, f"smaller {noun}")
    return text(f"... and {more}: --verbose lists all", "dim")


def matrix_shape(groups: int, in_features: int, out_features: int) -> str:
    """`in x out`, with the number of groups in front where there are several."""
    shape = f"{in_features} x {out_features}"
    return shape if groups == 1 else f"{groups} x ({shape})"


def by_reason(title: str, entries: Sequence[tuple[str, str, int]], *, verbose: bool) -> Group | None:
    """Nodes left alone, grouped by reason.

    Parameters
    ----------
    title : the line above.
    entries : (name, reason, parameters) of each.
    verbose : whether every name is listed, or the first few.

    Returns
    -------
    Group or None
        The reasons with the most weights first; None when there are no entries.
    """
    if not entries:
        return None
    grouped: dict[str, list[tuple[str, int]]] = {}
    for name, reason, parameters in entries:
        grouped.setdefault(reason, []).append((name, parameters))
    lines: list[RenderableType] = [heading(title)]
    for reason, members in sorted(grouped.items(), key=lambda item: (-sum(p for _, p in item[1]), item[0])):
        lines += _one_reason(reason, members, verbose=verbose)
    return Group(*lines)


def _one_reason(reason: str, members: Sequence[tuple[str, int]], *, verbose: bool) -> list[RenderableType]:
    parameters = sum(p for _, p in members)
    weights = f" ({plural(parameters, 'weight')})" if parameters else ""
    first = text(f"  {len(members):,} x {reason}{weights}")
    shown = members if verbose else members[:LISTED_NAMES]
    if verbose:
        return [first, *(text(f"      {name}", "dim") for name, _ in shown)]
    more = f", ... and {len(members) - len(shown):,} more (--verbose)" if len(members) > len(shown) else ""
    return [first, text("      " + ", ".join(name for name, _ in shown) + more, "dim")]


def skipped_block(skipped: Sequence[Skipped], *, verbose: bool) -> Group | None:
    """Every node that was looked at and left alone, by reason."""
    entries = [(f"{node.name} ({node.op_type})", node.reason, node.parameters) for node in skipped]
    return by_reason(f"skipped: {plural(len(skipped), 'node')}", entries, verbose=verbose)


def overrides_block(sites: Sequence[SiteResult | InspectedSite], *, verbose: bool) -> Group | None:
    """What the user asked of single weights, and which pattern that came from."""
    entries = [
        (site.name, site.overridden, site.parameters if isinstance(site, InspectedSite) else site.parameters_before)
        for site in sites
        if site.overridden
    ]
    return by_reason(f"set by [[site]]: {plural(len(entries), 'site')}", entries, verbose=verbose)


def budget_flag(budget: Budget) -> tuple[str, int | float]:
    """The flag and the value that would give this budget on the command line."""
    match budget:
        case FixedRank(rank):
            return "--rank", rank
        case Alpha(alpha):
            return "--alpha", alpha
        case Energy(share):
            return "--energy", share
        case KeepParams(share):
            return "--keep-params", share
        case KeepBytes(share):
            return "--keep-bytes", share
        case KeepMacs(share):
            return "--keep-macs", share
        case MaxError(error):
            return "--max-error", error
        case MaxDrop(drop):
            return "--max-drop", drop
        case Speedup(speedup):
            return "--speedup", speedup
