"""Narrow the sites by globs on node names and weight names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate

from lowrank_onnx.types import Site, Skipped, WeightRef


def select_sites(
    sites: Iterable[Site], *, include: Sequence[str], exclude: Sequence[str]
) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """Keep the sites that `include` matches (all, if it is empty) and `exclude` doesn't.

    A pattern is compared with the site's name and with its weight's name: as a glob (case-sensitive; ``*`` also matches
    ``/``), and as it is, so that names with brackets can be given verbatim. Sites that share one weight stay or go
    together, because a weight that is kept for one of them can't be removed.
    """
    candidates = list(sites)
    included, excluded = _matcher(include), _matcher(exclude)
    reasons: dict[str, str] = {}
    for site in candidates:
        pattern = excluded(site)
        if pattern is not None:
            reasons[site.name] = f"excluded by '{pattern}'"
        elif include and included(site) is None:
            reasons[site.name] = f"not included by {', '.join(repr(glob) for glob in include)}"
    left_out: dict[WeightRef, str] = {}
    for site in candidates:
        if site.name in reasons:
            left_out.setdefault(site.weight, site.name)
    for site in candidates:
        if site.name not in reasons and site.weight in left_out:
            partner = left_out[site.weight]
            reasons[site.name] = f"shares weight '{site.weight.name}' with '{partner}', which is left out"
    skipped = tuple(
        Skipped(site.name, site.op_type, reasons[site.name], site.shape.parameters)
        for site in candidates
        if site.name in reasons
    )
    return tuple(site for site in candidates if site.name not in reasons), skipped


def _matcher(patterns: Sequence[str]) -> Callable[[Site], str | None]:
    """A function that gives the first of `patterns` that matches a site, or None."""
    compiled = [(pattern, re.compile(translate(pattern))) for pattern in patterns]

    def first_match(site: Site) -> str | None:
        names = (site.name, site.weight.name)
        return next(
            (pattern for pattern, regex in compiled if pattern in names or any(map(regex.match, names))),
            None,
        )

    return first_match
