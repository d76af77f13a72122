"""What `inspect` found, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group

from lowrank_onnx.report.numbers import UNKNOWN, count, kept, plural, short_count, significant, size
from lowrank_onnx.report.tables import (
    blocks,
    heading,
    hidden_rows,
    largest,
    matrix_shape,
    overrides_block,
    skipped_block,
    table,
    text,
)
from lowrank_onnx.results import InspectedSite, InspectResult, Totals

_SPECTRUM_LEGEND = (
    "even: the largest rank that stores fewer weights. stable: ||W||_F^2 / ||W||_2^2, low means compressible. "
    "90 %: the rank that keeps that share of ||W||_F^2 (> : beyond what was computed)."
)

_ENERGY = 0.9
"""The share of the energy for which a column has room; the JSON report has more."""

_PLANS = (
    "@0.8: the rank at that budget (- : it stays dense). error: root mean square over the rewritten weights of "
    "||W - W_r|| / ||W||; of noise: what random matrices would lose at these ranks. The nearer the two, the less there "
    "is to gain. Real feeds (sweep --calib) weigh what the outputs notice, and other forms lose less."
)


def inspect_report(result: InspectResult, *, verbose: bool = False) -> Group:
    """Every site with its sizes and spectrum, every skipped node with its reason, the model's figures."""
    return blocks(
        (
            text(f"{result.input}: {plural(len(result.sites), 'eligible site')}, {len(result.skipped):,} skipped"),
            _sites_block(result.sites, verbose=verbose),
            skipped_block(result.skipped, verbose=verbose),
            overrides_block(result.sites, verbose=verbose),
            _plans_block(result),
            _totals_block(result.totals),
            Group(*(text(f"note: {note}", "dim") for note in result.notes)) if result.notes else None,
            text(result.message, "bold") if result.message else None,
        )
    )


def _sites_block(sites: Sequence[InspectedSite], *, verbose: bool) -> Group | None:
    if not sites:
        return None
    budgets = [share for share, _ in sites[0].budget_ranks]
    columns = (
        "site",
        "op",
        "in x out",
        "MACs",
        "even",
        "stable",
        f"{_ENERGY * 100:g} %",
        *(f"@{share:g}" for share in budgets),
    )
    shown = largest(sites, lambda site: site.parameters, verbose=verbose)
    rows = [_site_row(site) for site in shown]
    cut = hidden_rows(len(sites), "site", verbose=verbose)
    parts = (heading("eligible sites"), table(columns, rows, left=2), cut, text(_SPECTRUM_LEGEND, "dim"))
    return Group(*(part for part in parts if part is not None))


def _site_row(site: InspectedSite) -> tuple[str, ...]:
    return (
        site.name,
        site.op_type,
        matrix_shape(site.groups, site.in_features, site.out_features),
        short_count(site.macs),
        count(site.break_even_rank),
        significant(site.stable_rank),
        *(">" if rank is None else count(rank) for share, rank in site.energy_ranks if share == _ENERGY),
        *(UNKNOWN if rank is None else count(rank) for _, rank in site.budget_ranks),
    )


def _plans_block(result: InspectResult) -> Group | None:
    """What budgets would take of all weights together."""
    if not result.plans:
        return None
    before = result.totals
    rows = [
        (
            f"{plan.flag} {plan.share:g}",
            count(plan.rewritten),
            kept(before.site_parameters, plan.parameters),
            kept(before.macs, plan.macs),
            significant(plan.error) if plan.rewritten else UNKNOWN,
            significant(plan.noise_error) if plan.rewritten else UNKNOWN,
        )
        for plan in result.plans
    ]
    columns = ("budget", "rewritten", "weights kept", "MACs kept", "error", "of noise")
    return Group(heading("what budgets would take, by the spectra alone"), table(columns, rows), text(_PLANS, "dim"))


def _totals_block(totals: Totals) -> Group:
    rows = [("parameters of the whole model", count(totals.parameters)), ("file", size(totals.file_bytes))]
    if totals.site_parameters:
        rows.insert(0, ("weights of eligible sites", count(totals.site_parameters)))
        rows.insert(2, ("MACs of eligible sites, one run", count(totals.macs)))
    return Group(heading("totals"), table(("", "value"), rows))
