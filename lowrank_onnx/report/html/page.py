"""The page as a whole: verdict first, then the sections that the result has something for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html import choice_sections, cost_sections, sections
from lowrank_onnx.report.html.parts import Section, missing_library
from lowrank_onnx.report.numbers import short_count, significant, size
from lowrank_onnx.report.verdict_text import speed_phrase
from lowrank_onnx.report.written import write_text
from lowrank_onnx.results import CompressionResult, SweepResult


@dataclass(frozen=True, slots=True)
class Card:
    """One figure of the verdict: what it is, its value, and what stands behind it."""

    title: str
    value: str
    detail: str


def compress_page(result: CompressionResult, arguments: Sequence[str] = ()) -> str:
    """The page of one compression.

    Parameters
    ----------
    result : what is reported.
    arguments : the command that made it, as given to the shell; empty where there was none.

    Raises
    ------
    MissingDependencyError
        matplotlib or jinja2 is not installed.
    """
    return _render(
        title=f"{printable(Path(result.input).name)}: {result.status}",
        status=result.status,
        message=result.message,
        model=result.input,
        cards=_cards(result),
        caveats=_caveats(result),
        parts=_sections(result, arguments),
    )


def sweep_page(result: SweepResult, arguments: Sequence[str] = ()) -> str:
    """The page of a sweep: the trade-off, then the whole report of the point that was written, if one was.

    Parameters and errors are those of `compress_page`.
    """
    picked = None if result.picked is None else result.points[result.picked].result
    parts: tuple[Section | None, ...] = (choice_sections.front_section(result),)
    if picked is not None:
        parts += _sections(picked, arguments)
    else:
        parts += (sections.reproduce_section(result.points[0].result, arguments),)
    return _render(
        title=f"{printable(Path(result.input).name)}: {len(result.points)} budgets",
        status="unchanged" if picked is None else picked.status,
        message=result.message,
        model=result.input,
        cards=() if picked is None else _cards(picked),
        caveats=_caveats(picked or result.points[0].result),
        parts=parts,
    )


def _render(
    *,
    title: str,
    status: str,
    message: str,
    model: str,
    cards: Sequence[Card],
    caveats: Sequence[str],
    parts: Sequence[Section | None],
) -> str:
    headline, rest = status, f": {message}"
    if message.startswith(f"{status} "):  # "written to small.onnx" says it already
        rest = message.removeprefix(status)
    page: str = _template().render(
        title=title,
        status=status,
        headline=headline,
        message=printable(rest),
        model=printable(model),
        cards=cards,
        caveats=caveats,
        sections=[part for part in parts if part is not None],
    )
    return page


def _sections(result: CompressionResult, arguments: Sequence[str]) -> tuple[Section | None, ...]:
    return (
        choice_sections.search_section(result),
        sections.outputs_section(result),
        choice_sections.reached_section(result),
        cost_sections.sizes_section(result),
        cost_sections.latency_section(result),
        sections.spectra_section(result),
        sections.sensitivity_section(result),
        sections.sites_section(result),
        sections.overrides_section(result),
        choice_sections.refinement_section(result),
        choice_sections.plan_section(result),
        sections.left_alone_section(result),
        sections.reproduce_section(result, arguments),
    )


def write_page(page: str, path: Path) -> None:
    """Write the page; a reader sees the old file or the whole new one.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    write_text(page, path, flag="--html")


def _cards(result: CompressionResult) -> tuple[Card, ...]:
    cards = []
    before, after, verdict = result.before, result.after, result.verdict
    if after is not None:
        smaller = before.file_bytes / after.file_bytes if after.file_bytes else 0.0
        cards.append(
            Card("File", f"{smaller:.2f}x smaller", f"{size(before.file_bytes)} → {size(after.file_bytes)}"),
        )
    if verdict is not None and verdict.latency is not None:
        timing = verdict.latency
        interval = f"{timing.confidence * 100:g} % interval {timing.speedup_low:.2f} to {timing.speedup_high:.2f}"
        runs = f"{significant(timing.original.median_ms)} → {significant(timing.candidate.median_ms)} ms a run"
        cards.append(Card("Latency here", speed_phrase(timing), f"{runs}; {interval}"))
    if verdict is not None and verdict.outputs:
        agreements = [o.top1_agreement for o in verdict.outputs if o.top1_agreement is not None]
        detail = "relative error of the outputs"
        if agreements:
            detail += f"; same first answer in {100 * min(agreements):.2f} % of cases"
        cards.append(Card("Distance from the original", significant(verdict.relative_error), detail))
    if after is not None and before.macs and after.macs:
        cards.append(
            Card(
                "Work",
                f"{before.macs / after.macs:.2f}x less",
                f"{short_count(before.macs)} → {short_count(after.macs)} MACs in the eligible layers",
            )
        )
    return tuple(cards)


def _caveats(result: CompressionResult) -> tuple[str, ...]:
    found = []
    if result.synthetic:
        found.append("The feeds are synthetic: they do for timing, not for judging what the outputs lost.")
    if result.verdict is None and result.status == "written":
        found.append("Not validated: outputs and latency were not compared.")
    if result.verdict is not None:
        found += [f"Failed: {failure}" for failure in result.verdict.failures]
    return tuple(printable(text) for text in (*found, *result.notes))


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise missing_library() from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowrank_onnx.report.html", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"unbroken": _unbroken, "breakable": _breakable}
    return environment.get_template("page.html.jinja")


def _unbroken(line: str) -> str:
    """A sentence in which no line ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|[kMG]?B|dB)(?!\w))", "\N{NO-BREAK SPACE}", line).replace(" -> ", " → ")


def _breakable(name: str) -> Any:
    """A name as HTML that prefers to be broken where one of its parts ends."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_:\\]+|(?<!\d)\.)(?=\w)", r"\1<wbr>", str(escape(name))))
