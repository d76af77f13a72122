"""Where the bytes and the milliseconds went: each layer and the whole model, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html import figures
from lowrank_onnx.report.html.figures import Bar
from lowrank_onnx.report.html.parts import Section, Table
from lowrank_onnx.report.numbers import count, kept, plural, significant, size
from lowrank_onnx.results import CompressionResult, SiteResult

_TIMED = (
    "What each layer takes in one run, timed alone on this machine while the plan was made. Inside the model it may "
    "take more or less: what counts is the latency of the whole, above."
)

BARS = 20
"""Layers in a figure, the largest first; the table has them all."""


def sizes_section(result: CompressionResult) -> Section | None:
    """Stored weights of each layer and figures of the whole model, before and after."""
    weights = _by_weight(result.sites, lambda site: site.bytes_before)
    if not weights:
        return None
    bars = [Bar(label, site.bytes_before / 1e6, site.bytes_after / 1e6) for label, site in weights[:BARS]]
    before, after = result.before, result.after
    whole = [
        ("weights of eligible layers", *_change(before.site_parameters, after.site_parameters if after else None)),
        ("parameters of the whole model", *_change(before.parameters, after.parameters if after else None)),
        ("MACs of eligible layers, one run", *_change(before.macs, after.macs if after else None)),
        ("bytes of the file", *_change(before.file_bytes, after.file_bytes if after else None)),
    ]
    rows = [
        (printable(label), size(site.bytes_before), size(site.bytes_after), kept(site.bytes_before, site.bytes_after))
        for label, site in weights
    ]
    return Section(
        "sizes",
        "Where the bytes went",
        (shown_of(min(BARS, len(weights)), len(weights), "largest layers"),),
        figures.paired_bars(bars, "MB of stored weights"),
        "Stored weights of each layer before and after, in megabytes. The table of layers has the figures.",
        (
            Table("The whole model", ("", "before", "after", "kept"), tuple(whole)),
            Table("Stored weights of each layer", ("layer", "before", "after", "kept"), tuple(rows)),
        ),
    )


def latency_section(result: CompressionResult) -> Section | None:
    """Milliseconds of each layer before and after, where layers were timed."""
    timed = [site for site in result.sites if site.latency_before_ms is not None]
    weights = _by_weight(timed, lambda site: site.latency_before_ms or 0.0)
    if not weights:
        return None
    times = [(label, *_milliseconds(site)) for label, site in weights]
    first, last = sum(before for _, before, _ in times), sum(after for _, _, after in times)
    rows = [
        (printable(label), significant(before), significant(after), _ratio(before, after))
        for label, before, after in times
    ]
    rows.append(("all of these", significant(first), significant(last), _ratio(first, last)))
    untimed = len({site.weight for site in result.sites} - {site.weight for site in timed})
    return Section(
        "milliseconds",
        "Where the milliseconds went",
        (
            _TIMED,
            shown_of(min(BARS, len(times)), len(times), "slowest layers"),
            f"{plural(untimed, 'layer')} could not be timed, or not in the time for that." if untimed else "",
        ),
        figures.paired_bars([Bar(*entry) for entry in times[:BARS]], "ms of one run"),
        "Milliseconds of each layer before and after. The table has the figures.",
        (Table("Milliseconds of one run", ("layer", "before", "after", "speed"), tuple(rows)),),
    )


def _milliseconds(site: SiteResult) -> tuple[float, float]:
    """Before and after; a layer that stayed dense takes what it took."""
    before = site.latency_before_ms or 0.0
    return before, before if site.latency_after_ms is None else site.latency_after_ms


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}x" if after > 0.0 else "-"


def _by_weight(sites: Sequence[SiteResult], most: Callable[[SiteResult], float]) -> list[tuple[str, SiteResult]]:
    """One site of each weight with a label for all that share it, those with most first."""
    users = Counter(site.weight for site in sites)
    first = {site.weight: site for site in reversed(sites)}
    ranked = sorted(first.values(), key=lambda site: (-most(site), site.name))
    others = {weight: f" and {users[weight] - 1} more" if users[weight] > 1 else "" for weight in users}
    return [(f"{site.name}{others[site.weight]}", site) for site in ranked]


def shown_of(shown: int, there: int, what: str) -> str:
    """What a figure shows, where that isn't all."""
    return f"The {shown} {what} of {there}." if shown < there else ""


def _change(before: int | None, after: int | None) -> tuple[str, str, str]:
    return count(before), count(after), kept(before, after)
