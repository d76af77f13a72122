"""The parts of the page: from a result to plain data for the template to lay out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html import figures
from lowrank_onnx.report.html.cost_sections import BARS, shown_of
from lowrank_onnx.report.html.figures import Curve
from lowrank_onnx.report.html.parts import Section, Table
from lowrank_onnx.report.numbers import count, fraction, kept, passes, short_count, significant
from lowrank_onnx.report.sensitivity_text import exclusion_line
from lowrank_onnx.report.tables import matrix_shape
from lowrank_onnx.report.verdict_text import (
    answer_lines,
    feeds_phrase,
    latency_line,
    level_lines,
    metric_lines,
    output_label,
    placement_line,
    top1_bounds,
)
from lowrank_onnx.results import CompressionResult, SiteResult
from lowrank_onnx.types import Skipped

PANELS = 12
"""Panels of error curves, the largest weights first."""

_COMMAND_WIDTH = 88
"""Columns beyond which a command goes on in the next line, where it can."""


def spectra_section(result: CompressionResult) -> Section | None:
    """Error over rank of the largest weights."""
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


def sensitivity_section(result: CompressionResult) -> Section | None:
    """The layers whose loss the outputs notice most."""
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
            shown_of(len(shown), len(ranked), "most sensitive layers"),
            *(printable(exclusion_line(site)) for site in ranked if site.exclude),
        ),
        figures.single_bars(
            [site.name for site in shown],
            [site.importance or 0.0 for site in shown],
            "squared error of the outputs for each squared error of the layer",
        ),
        f"Sensitivity of the outputs to each layer; the highest is {printable(shown[0].name)}.",
    )


def outputs_section(result: CompressionResult) -> Section | None:
    """Statistics of each output, and the latency."""
    verdict = result.verdict
    if verdict is None:
        return None
    rows = tuple(
        (
            printable(output_label(output)),
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
    lines += (*answer_lines(verdict), *level_lines(verdict), *top1_bounds(verdict))
    if verdict.metric is not None:
        lines += metric_lines(verdict.metric)
    if verdict.latency is not None:
        lines.append(latency_line(verdict.latency, verdict))
    if verdict.nodes:
        lines.append(placement_line(verdict.nodes))
    caption = "Each output of the new model against the original's"
    return Section("outputs", "How close", tuple(map(printable, lines)), tables=(Table(caption, columns, rows),))


def sites_section(result: CompressionResult) -> Section | None:
    """Every layer that was rewritten."""
    rewritten = _largest([site for site in result.sites if site.rank is not None])
    if not rewritten:
        return None
    harm = any(site.predicted_error is not None for site in rewritten)
    columns = (
        "layer",
        "operator",
        "in x out",
        "form",
        "rank",
        "weights",
        "kept",
        "error",
        *(("harm",) if harm else ()),
    )
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
            *((significant(site.predicted_error),) if harm else ()),
        )
        for site in rewritten
    )
    text = "error: relative, of what the layer computes on the feeds where these were given, else of its weight"
    text += "; harm: relative error of the outputs expected of this layer alone." if harm else "."
    return Section("layers", "The layers that were rewritten", (text,), tables=(Table("Layers", columns, rows, 4),))


def overrides_section(result: CompressionResult) -> Section | None:
    """What the user asked of single layers."""
    rows = tuple((printable(site.name), printable(site.overridden)) for site in result.sites if site.overridden)
    if not rows:
        return None
    return Section("overrides", "What was set for single layers", tables=(Table("Layers", ("layer", "set"), rows, 2),))


def left_alone_section(result: CompressionResult) -> Section | None:
    """Every node that was not, with its reason."""
    dense = [Skipped(s.name, s.op_type, s.reason, s.parameters_before) for s in result.sites if s.rank is None]
    rows = tuple(
        (printable(node.name), node.op_type, printable(node.reason), short_count(node.parameters))
        for node in sorted((*dense, *result.skipped), key=lambda node: -node.parameters)
    )
    if not rows:
        return None
    table = Table("Nodes", ("node", "operator", "why", "weights"), rows, left=3)
    return Section("left-alone", "What was left alone, and why", tables=(table,))


def reproduce_section(result: CompressionResult, arguments: Sequence[str]) -> Section:
    """The command, versions and times."""
    versions = tuple((name, version) for name, version in result.versions.items() if version)
    return Section(
        "reproduce",
        "To reproduce it",
        command=_command(tuple(map(printable, ("lowrank-onnx", *arguments)))) if arguments else "",
        tables=(
            Table("Versions and machine", ("what", "version"), versions, left=2),
            _stages_table(result),
        ),
    )


def _command(words: Sequence[str]) -> str:
    """The command for a shell, continued on further lines where it is long, each beginning with an option."""
    options: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-"):
            options.append([])
        options[-1].append(shlex.quote(word))
    lines = [" ".join(options[0])]
    for option in map(" ".join, options[1:]):
        if len(lines[-1]) + len(option) > _COMMAND_WIDTH:
            lines.append(f"    {option}")
        else:
            lines[-1] += f" {option}"
    return " \\\n".join(lines)


def _stages_table(result: CompressionResult) -> Table:
    """Seconds, and where a pass was timed also passes: the unit that doesn't depend on the model."""
    one_pass = result.pass_seconds
    times = [*result.seconds.items(), ("in all", sum(result.seconds.values()))]
    rows = tuple((stage, significant(time), *((passes(time, one_pass),) if one_pass else ())) for stage, time in times)
    if not one_pass:
        return Table("Time of each stage", ("stage", "seconds"), rows)
    caption = "Time of each stage; a pass runs the original once on each of the feeds"
    return Table(caption, ("stage", "seconds", "passes"), rows)


def _largest(sites: Sequence[SiteResult], most: int | None = None) -> list[SiteResult]:
    return sorted(sites, key=lambda site: -site.parameters_before)[:most]
