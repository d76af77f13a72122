"""From a result to the page: what is shown, in plain data, for the template to lay out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_onnx.errors import MissingDependencyError
from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html import figures
from lowrank_onnx.report.html.figures import Bar, Curve, Point
from lowrank_onnx.report.numbers import count, fraction, kept, plural, short_count, significant, size
from lowrank_onnx.report.tables import matrix_shape
from lowrank_onnx.report.verdict_text import feeds_phrase, latency_line, metric_lines, speed_phrase, top1_bounds
from lowrank_onnx.report.written import write_text
from lowrank_onnx.results import CompressionResult, SiteResult
from lowrank_onnx.types import Skipped, numpy_dtype

BARS = 20
"""Sites in a figure, the largest first; the table has them all."""

PANELS = 12
"""Panels of error curves, the largest weights first."""


@dataclass(frozen=True, slots=True)
class Card:
    """One figure of the verdict: what it is, its value, and what stands behind it."""

    title: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of cells; `caption` says what the table shows. The first `left` columns hold text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. `figure` is SVG that this package drew; `alt` says in words what it shows."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    figure: str = ""
    alt: str = ""
    tables: tuple[Table, ...] = ()
    command: str = ""


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
    sections = (
        _search(result),
        _sizes(result),
        _spectra(result),
        _sensitivity(result),
        _outputs(result),
        _sites(result),
        _left_alone(result),
        _reproduce(result, arguments),
    )
    page: str = _template().render(
        title=f"{printable(Path(result.input).name)}: {result.status}",
        status=result.status,
        message=printable(result.message),
        model=printable(result.input),
        cards=_cards(result),
        caveats=_caveats(result),
        sections=[section for section in sections if section is not None],
    )
    return page


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
            detail += f"; same first answer in {min(agreements):.2%} of cases"
        cards.append(Card("Distance from the original", significant(verdict.relative_error), detail))
    if after is not None and before.macs and after.macs:
        cards.append(
            Card(
                "Work",
                f"{after.macs / before.macs:.1%} of the MACs",
                f"{short_count(before.macs)} → {short_count(after.macs)} in the eligible layers",
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


def _search(result: CompressionResult) -> Section | None:
    steps = result.search
    if not steps:
        return None
    accepted = [step for step in steps if step.accepted]
    chosen = min(accepted, key=lambda step: step.keep) if accepted else None
    raced = all(step.speedup is not None for step in steps)
    if raced and accepted:
        chosen = max(accepted, key=lambda step: step.keep)
    points = [Point((step.speedup or 0.0) if raced else step.keep, step.error, step is chosen) for step in steps]
    cost = "speed, times the original's" if raced else "share kept"
    rows = tuple(
        (f"{n}", fraction(s.keep), significant(s.error), significant(s.speedup), "yes" if s.accepted else "no")
        for n, s in enumerate(steps, start=1)
    )
    columns = ("attempt", "share kept", "output error", "speed", "accepted")
    return Section(
        "search",
        "The search",
        ("Every model that was tried on the way to the budget. The diamond is the one that was taken.",),
        figures.trade_off(points, cost),
        f"Relative error of the outputs over {cost}, {plural(len(steps), 'attempt')}.",
        (Table("Attempts", columns, rows, left=0),),
    )


def _sizes(result: CompressionResult) -> Section | None:
    shown = _largest(result.sites, BARS)
    if not shown:
        return None
    bars = [Bar(s.name, _megabytes(s, s.parameters_before), _megabytes(s, s.parameters_after)) for s in shown]
    before, after = result.before, result.after
    rows = [
        ("weights of eligible layers", *_change(before.site_parameters, after.site_parameters if after else None)),
        ("parameters of the whole model", *_change(before.parameters, after.parameters if after else None)),
        ("MACs of eligible layers, one run", *_change(before.macs, after.macs if after else None)),
        ("bytes of the file", *_change(before.file_bytes, after.file_bytes if after else None)),
    ]
    return Section(
        "sizes",
        "Where the bytes went",
        (_cut(len(shown), len(result.sites), "largest layers"),),
        figures.paired_bars(bars, "MB of stored weights"),
        "Stored weights of each layer before and after, in megabytes. The table of layers has the figures.",
        (Table("The whole model", ("", "before", "after", "kept"), tuple(rows)),),
    )


def _change(before: int | None, after: int | None) -> tuple[str, str, str]:
    return count(before), count(after), kept(before, after)


def _spectra(result: CompressionResult) -> Section | None:
    shown = _largest([site for site in result.sites if len(site.error_curve) > 1], PANELS)
    if not shown:
        return None
    whitened = any(site.input_error is not None for site in shown)
    of_what = "of what the layer computes on the feeds, where these were given" if whitened else "of the weight"
    return Section(
        "spectra",
        "What each rank would cost",
        (
            f"Relative error {of_what}, at every rank; the dashed line is the rank that was taken.",
            "A curve that falls late belongs to a weight that low rank does not suit.",
        ),
        figures.error_curves([Curve(site.name, site.error_curve, site.rank) for site in shown]),
        "Error over rank for the largest weights. The table of layers has the rank and the error of each.",
    )


def _sensitivity(result: CompressionResult) -> Section | None:
    measured = [site for site in result.sites if site.importance is not None]
    if not measured:
        return None
    ranked = sorted(measured, key=lambda site: -(site.importance or 0.0))
    shown = ranked[:BARS]
    return Section(
        "sensitivity",
        "Which layers matter",
        (
            "How much the outputs change when one layer alone loses a given share of what it computes, as measured.",
            "Where a budget costs too much, exclude the first of them (--exclude NAME).",
            _cut(len(shown), len(ranked), "most sensitive layers"),
        ),
        figures.single_bars(
            [site.name for site in shown],
            [site.importance or 0.0 for site in shown],
            "squared error of the outputs for each squared error of the layer",
        ),
        f"Sensitivity of the outputs to each layer; the highest is {printable(shown[0].name)}.",
    )


def _outputs(result: CompressionResult) -> Section | None:
    verdict = result.verdict
    if verdict is None:
        return None
    rows = tuple(
        (
            printable(output.name),
            significant(output.relative_l2),
            significant(output.max_abs),
            significant(output.sqnr_db),
            fraction(output.cosine),
            fraction(output.top1_agreement),
        )
        for output in verdict.outputs
    )
    columns = ("output", "relative L2", "largest difference", "SQNR, dB", "cosine", "top-1 agreement")
    lines = [f"Compared on {feeds_phrase(verdict)}."]
    lines += top1_bounds(verdict)
    if verdict.metric is not None:
        lines += metric_lines(verdict.metric)
    if verdict.latency is not None:
        lines.append(latency_line(verdict.latency, verdict))
    caption = "Each output of the new model against the original's"
    return Section("outputs", "How close", tuple(map(printable, lines)), tables=(Table(caption, columns, rows),))


def _sites(result: CompressionResult) -> Section | None:
    rewritten = _largest([site for site in result.sites if site.rank is not None])
    if not rewritten:
        return None
    columns = ("layer", "operator", "in x out", "form", "rank", "weights", "kept", "error", "harm")
    rows = tuple(
        (
            printable(site.name),
            site.op_type,
            matrix_shape(site.groups, site.in_features, site.out_features),
            site.form.replace("_", " "),
            count(site.rank),
            short_count(site.parameters_before),
            kept(site.parameters_before, site.parameters_after),
            significant(site.relative_error if site.input_error is None else site.input_error),
            significant(site.predicted_error),
        )
        for site in rewritten
    )
    text = (
        "error: relative, of what the layer computes on the feeds where these were given, else of its weight; "
        "harm: relative error of the outputs expected of this layer alone."
    )
    return Section("layers", "The layers that were rewritten", (text,), tables=(Table("Layers", columns, rows, 4),))


def _left_alone(result: CompressionResult) -> Section | None:
    dense = [Skipped(s.name, s.op_type, s.reason, s.parameters_before) for s in result.sites if s.rank is None]
    rows = tuple(
        (printable(node.name), node.op_type, short_count(node.parameters), printable(node.reason))
        for node in sorted((*dense, *result.skipped), key=lambda node: -node.parameters)
    )
    if not rows:
        return None
    table = Table("Nodes", ("node", "operator", "weights", "why"), rows, left=4)
    return Section("left-alone", "What was left alone, and why", tables=(table,))


def _reproduce(result: CompressionResult, arguments: Sequence[str]) -> Section:
    versions = tuple((name, version) for name, version in result.versions.items() if version)
    seconds = tuple((stage, significant(time)) for stage, time in result.seconds.items())
    return Section(
        "reproduce",
        "To reproduce it",
        command=shlex.join(map(printable, ("lowrank-onnx", *arguments))) if arguments else "",
        tables=(
            Table("Versions and machine", ("what", "version"), versions, left=2),
            Table("Time of each stage", ("stage", "seconds"), seconds),
        ),
    )


def _largest(sites: Sequence[SiteResult], most: int | None = None) -> list[SiteResult]:
    return sorted(sites, key=lambda site: -site.parameters_before)[:most]


def _megabytes(site: SiteResult, parameters: int) -> float:
    return parameters * numpy_dtype(site.dtype).itemsize / 1e6


def _cut(shown: int, there: int, what: str) -> str:
    return f"The {shown} {what} of {there}." if shown < there else ""


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "--html needs matplotlib and jinja2: pip install 'lowrank-onnx[html]', or use --json"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowrank_onnx.report.html", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
