"""Narrow the sites by globs on node names and weight names, and by the forms that they may be written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import translate

from lowrank_onnx.types import Site, Skipped, WeightRef


def select_sites(
    sites: Sequence[Site], *, include: Sequence[str], exclude: Sequence[str], forms: Sequence[str]
) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """Keep the sites that `include` matches (all, if it is empty) and `exclude` doesn't.

    A pattern is compared with the site's name and with its weight's name: as a glob (case-sensitive; ``*`` also matches
    ``/``), and as it is, so that names with brackets can be given verbatim. Sites that share one weight stay or go
    together, because a weight that is kept for one of them can't be removed.

    The sites that stay keep those of their forms that `forms` names; one with none of them is left out.
    """
    offered = {site.name: site.forms for site in sites}
    candidates = [replace(site, forms=tuple(form for form in site.forms if form.name in forms)) for site in sites]
    included, excluded = _matcher(include), _matcher(exclude)
    reasons: dict[str, str] = {}
    for site in candidates:
        pattern = excluded(site)
        if pattern is not None:
            reasons[site.name] = f"excluded by '{pattern}'"
        elif include and included(site) is None:
            reasons[site.name] = f"not included by {', '.join(repr(glob) for glob in include)}"
        elif not site.forms:
            names = ", ".join(form.name for form in offered[site.name])
            reasons[site.name] = f"can be written as {names}, none of which is among the forms {', '.join(forms)}"
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
