"""The report of one compression, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group

from lowrank_onnx.config import Config
from lowrank_onnx.report.numbers import UNKNOWN, count, kept, passes, plural, short_count, significant, size
from lowrank_onnx.report.refinement_text import refinement_block
from lowrank_onnx.report.search_text import reached_table, search_table
from lowrank_onnx.report.sensitivity_text import sensitivity_block
from lowrank_onnx.report.tables import (
    blocks,
    budget_flag,
    by_reason,
    heading,
    hidden_rows,
    largest,
    matrix_shape,
    overrides_block,
    skipped_block,
    table,
    text,
)
from lowrank_onnx.report.verdict_text import verdict_block
from lowrank_onnx.results import CompressionResult, PlanTrial, Reached, SearchStep, SiteResult, Totals

_STATUS_STYLE = {"written": "bold green", "rejected": "bold red", "unchanged": "bold yellow"}


def compress_report(result: CompressionResult, *, verbose: bool = False) -> Group:
    """Everything about one compression: what was changed, what was not and why, totals, proof, outcome."""
    rewritten = [site for site in result.sites if site.rank is not None]
    dense = [(site.name, site.reason, site.parameters_before) for site in result.sites if site.rank is None]
    return blocks(
        (
            text(f"{result.input}: {options_line(result.config)}"),
            _sites_block(rewritten, verbose=verbose),
            by_reason(f"left dense: {plural(len(dense), 'site')}", dense, verbose=verbose),
            skipped_block(result.skipped, verbose=verbose),
            overrides_block(result.sites, verbose=verbose),
            sensitivity_block(result.sites, verbose=verbose),
            _notes_block(result.sites, verbose=verbose),
            None if result.refinement is None else refinement_block(result.refinement, verbose=verbose),
            _search_block(result.search),
            _trials_line(result.trials),
            totals_block(result.before, result.after, macs_note=_macs_note(result)),
            _proof_block(result),
            _reached_block(result.reached),
            _seconds_line(result, verbose=verbose),
            Group(*(text(f"note: {note}", "dim") for note in result.notes)) if result.notes else None,
            text(result.message, _STATUS_STYLE[result.status]),
        )
    )


def options_line(config: Config) -> str:
    """The options that decide the result, as flags."""
    flag, value = budget_flag(config.budget)
    method = {
        "auto": "--method auto",
        "rsi": f"--method rsi (q={config.power_iterations}, p={config.oversampling})",
        "rsvd": f"--method rsvd (p={config.oversampling})",
        "svd": "--method svd",
    }[config.method]
    return f"{flag} {value:g}, {method}, --objective {config.objective}, --seed {config.seed}"


def _sites_block(sites: Sequence[SiteResult], *, verbose: bool) -> Group | None:
    if not sites:
        return None
    shown = largest(sites, lambda site: site.parameters_before, verbose=verbose)
    measured = any(site.predicted_error is not None for site in sites)
    columns = ("site", "form", "in x out", "rank", "weights", "kept", "error", *(("harm",) if measured else ()))
    grid = table(columns, [_site_row(site, measured) for site in shown], left=2)
    cut = hidden_rows(len(sites), "site", verbose=verbose)
    parts = (heading(f"factorized: {plural(len(sites), 'site')}"), grid, cut, text(_legend(sites, measured)))
    return Group(*(part for part in parts if part is not None))


def _legend(sites: Sequence[SiteResult], measured: bool) -> str:
    """What the columns of errors mean in this report."""
    whitened = sum(site.input_error is not None for site in sites)
    of_inputs = "relative, of what the site computes on the feeds"
    if whitened == len(sites):
        error = of_inputs
    else:
        error = f"relative, of the weight{f'; where it could be whitened {of_inputs}' if whitened else ''}"
    harm = "; harm: relative error of the outputs expected of this site alone" if measured else ""
    return f"error: {error}{harm}."


def _notes_block(sites: Sequence[SiteResult], *, verbose: bool) -> Group | None:
    """What the feeds could not teach, grouped by what would help."""
    noted = [(site.name, site.note, site.parameters_before) for site in sites if site.note]
    return by_reason(f"calibration notes: {plural(len(noted), 'site')}", noted, verbose=verbose) if noted else None


def _site_row(site: SiteResult, measured: bool) -> tuple[str, ...]:
    return (
        site.name,
        site.form.removeprefix("conv_"),
        matrix_shape(site.groups, site.in_features, site.out_features),
        count(site.rank),
        short_count(site.parameters_before),
        kept(site.parameters_before, site.parameters_after),
        significant(site.relative_error if site.input_error is None else site.input_error),
        *((significant(site.predicted_error),) if measured else ()),
    )


def totals_block(before: Totals, after: Totals | None, *, macs_note: str = "") -> Group:
    """The model's figures, before and after."""
    rows = [
        ("weights of eligible sites", *_change(before.site_parameters, after.site_parameters if after else None)),
        ("parameters of the whole model", *_change(before.parameters, after.parameters if after else None)),
        (f"MACs of eligible sites, one run{macs_note}", *_change(before.macs, after.macs if after else None)),
        (
            "file",
            size(before.file_bytes),
            size(after.file_bytes) if after else UNKNOWN,
            kept(before.file_bytes, after.file_bytes) if after else UNKNOWN,
        ),
    ]
    shown = rows if before.site_parameters else [rows[1], rows[3]]
    return Group(heading("totals"), table(("", "before", "after", "kept"), shown))


def _change(before: int | None, after: int | None) -> tuple[str, str, str]:
    return count(before), count(after), kept(before, after)


def _macs_note(result: CompressionResult) -> str:
    synthetic = result.synthetic or (result.verdict is not None and result.verdict.synthetic)
    return " (synthetic feed)" if synthetic and result.before.macs is not None else ""


def _search_block(search: Sequence[SearchStep]) -> Group | None:
    return Group(heading("search"), table(*search_table(search))) if search else None


def _trials_line(trials: Sequence[PlanTrial]) -> Group | None:
    """How far measured effects were trusted in the plan that was made last, and what the others would have done."""
    if not trials:
        return None
    last = [trial for trial in trials if trial.keep == trials[-1].keep]
    chosen = next(trial for trial in last if trial.chosen)
    line = f"plan: measured effects trusted to {_trial_name(chosen)}"
    if chosen.error is None:
        return Group(text(f"{line}, for want of samples to choose by"))
    others = ", ".join(f"{_trial_name(trial)}: {significant(trial.error)}" for trial in last if not trial.chosen)
    error = f"error {significant(chosen.error)} on calibration feeds"
    return Group(text(f"{line} ({error}{f'; to {others}' if others else ''})"))


def _trial_name(trial: PlanTrial) -> str:
    return f"{trial.trust:g} with plain forms" if trial.plain else f"{trial.trust:g}"


def _proof_block(result: CompressionResult) -> Group | None:
    if result.verdict is not None:
        return verdict_block(result.verdict)
    if not result.config.validate and result.status != "unchanged":
        return Group(text("not validated (--no-validate): the outputs and the latency are unknown", "bold yellow"))
    return None


def _reached_block(reached: Sequence[Reached]) -> Group | None:
    return Group(heading("asked and reached"), table(*reached_table(reached))) if reached else None


def _seconds_line(result: CompressionResult, *, verbose: bool) -> Group | None:
    if not result.seconds:
        return None
    one_pass, total = result.pass_seconds, sum(result.seconds.values())
    shown = {stage: time for stage, time in result.seconds.items() if verbose or time >= 0.01 * total}
    stages = ", ".join(f"{stage} {_time(seconds, one_pass)}" for stage, seconds in shown.items())
    unit = " (in brackets: passes of the original over all feeds)" if one_pass else ""
    lines = [text(f"time: {stages}; in all {_time(total, one_pass)}{unit}", "dim")]
    if verbose:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if version)
        lines.append(text(f"versions: {versions or UNKNOWN}", "dim"))
    return Group(*lines)


def _time(seconds: float, one_pass: float | None) -> str:
    return f"{significant(seconds)} s" + (f" ({passes(seconds, one_pass)})" if one_pass else "")
