"""What compressing each weight alone does to the outputs, as a person reads it."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Sequence

from rich.console import Group, RenderableType

from lowrank_onnx.report.numbers import plural, short_count, significant
from lowrank_onnx.report.tables import heading, table, text
from lowrank_onnx.results import SiteResult

LISTED_SITES = 5
"""Sites shown, the most sensitive first, beyond which only ``--verbose`` shows the rest."""


def sensitivity_block(sites: Sequence[SiteResult], *, verbose: bool) -> Group | None:
    """The sites by what compressing them alone costs, the dearest first, and the flags that exclude those to exclude.

    None where nothing was measured.
    """
    measured = [site for site in sites if site.probes]
    if not measured:
        return None
    ranked = sorted(measured, key=lambda site: -(site.importance or 0.0))
    shown = ranked if verbose else ranked[:LISTED_SITES]
    rows = [
        (
            site.name,
            short_count(site.parameters_before),
            f"{site.probes[0][0]}",
            significant(site.probes[0][1]),
            significant(site.importance),
        )
        for site in shown
    ]
    hidden = len(ranked) - len(shown)
    parts: list[RenderableType] = [
        heading(f"sensitivity: {plural(len(ranked), 'site')}, each compressed alone"),
        table(("site", "weights", "rank", "output error", "sensitivity"), rows),
        text("sensitivity: squared error of the outputs for each squared error of the site, relative."),
    ]
    if hidden:
        parts.append(text(f"... and {plural(hidden, 'less sensitive site')}: --verbose lists all", "dim"))
    parts += [text(exclusion_line(site), "yellow") for site in measured if site.exclude]
    return Group(*parts)


def exclusion_line(site: SiteResult) -> str:
    """The flag that excludes a site, to copy into a shell, and why."""
    return f"better left out: --exclude {shlex.quote(glob.escape(site.name))} ({site.exclude})"
