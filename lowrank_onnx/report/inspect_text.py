"""What `inspect` found, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group

from lowrank_onnx.report.numbers import count, plural, short_count, significant, size
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
    "NN %: the rank that keeps that share of ||W||_F^2 (> : beyond what was computed)."
)


def inspect_report(result: InspectResult, *, verbose: bool = False) -> Group:
    """Every site with its sizes and spectrum, every skipped node with its reason, the model's figures."""
    return blocks(
        (
            text(f"{result.input}: {plural(len(result.sites), 'eligible site')}, {len(result.skipped):,} skipped"),
            _sites_block(result.sites, verbose=verbose),
            skipped_block(result.skipped, verbose=verbose),
            overrides_block(result.sites, verbose=verbose),
            _totals_block(result.totals),
            Group(*(text(f"note: {note}", "dim") for note in result.notes)) if result.notes else None,
        )
    )


def _sites_block(sites: Sequence[InspectedSite], *, verbose: bool) -> Group | None:
    if not sites:
        return None
    shares = [share for share, _ in sites[0].energy_ranks]
    columns = (
        "site",
        "op",
        "in x out",
        "MACs",
        "even",
        "stable",
        *(f"{share * 100:g} %" for share in shares),
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
        *(">" if rank is None else count(rank) for _, rank in site.energy_ranks),
    )


def _totals_block(totals: Totals) -> Group:
    rows = [
        ("weights of eligible sites", count(totals.site_parameters)),
        ("parameters of the whole model", count(totals.parameters)),
        ("MACs of eligible sites, one run", count(totals.macs)),
        ("file", size(totals.file_bytes)),
    ]
    return Group(heading("totals"), table(("", "value"), rows))
