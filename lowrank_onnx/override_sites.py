"""Which weights the user's overrides are about, and what that does to the sites."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from lowrank_onnx.config import Config
from lowrank_onnx.errors import UsageError
from lowrank_onnx.name_patterns import matches
from lowrank_onnx.site_override import SETTINGS, SiteOverride, described, overlaid
from lowrank_onnx.types import Site, Skipped, WeightRef

_NEAR = 3
"""Names that the error for a pattern that fits nothing suggests."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of one weight: the settings of all that match it, and each with the pattern that it is from."""

    override: SiteOverride
    origins: Mapping[str, str]

    @property
    def description(self) -> str:
        """For reports, e.g. "rank 64 by 'encoder.*'"."""
        by: dict[str, dict[str, object]] = {}
        for name, value in self.override.settings.items():
            by.setdefault(self.origins[name], {})[name] = value
        return "; ".join(f"{described(settings)} by {pattern!r}" for pattern, settings in by.items())


@dataclass(frozen=True, slots=True)
class OverriddenSites:
    """The sites that are left, with what is asked of their weights.

    Attributes
    ----------
    sites : with the forms that are left to them.
    skipped : those that an override excludes, or that can't be written in its form.
    asked : by weight.
    notes : what a reader should know of patterns that had no effect.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...] = ()
    asked: Mapping[WeightRef, Asked] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


def override_sites(
    sites: Sequence[Site], skipped: Sequence[Skipped], overrides: Sequence[SiteOverride]
) -> OverriddenSites:
    """Find what each override is about, and leave out what they exclude.

    Parameters
    ----------
    sites : those that can be rewritten, with all their forms.
    skipped : nodes that are left alone already; a pattern that fits only such nodes is noted.
    overrides : in the order given: later ones win, option by option.

    Raises
    ------
    UsageError
        A pattern fits no node and no weight; the message has names that are near.
    """
    if not overrides:
        return OverriddenSites(tuple(sites))
    users: dict[WeightRef, list[str]] = {}
    for site in sites:
        users.setdefault(site.weight, [site.weight.name]).append(site.name)
    notes = _notes(overrides, [name for names in users.values() for name in names], skipped)
    asked = {weight: found for weight, names in users.items() if (found := _asked(overrides, names)) is not None}
    left: list[Site] = []
    out: list[Skipped] = []
    for site in sites:
        found = asked.get(site.weight)
        narrowed = site if found is None else _in_form(site, found.override.form)
        reason = "" if found is None else _reason(site, narrowed, found)
        if reason:
            out.append(Skipped(site.name, site.op_type, reason, site.shape.parameters))
        else:
            left.append(narrowed)
    return OverriddenSites(tuple(left), tuple(out), asked, notes)


def _asked(overrides: Sequence[SiteOverride], names: Sequence[str]) -> Asked | None:
    fitting = [one for one in overrides if matches(one.match, names)]
    together = overlaid(fitting)
    if together is None:
        return None
    origins = {name: one.match for one in fitting for name in SETTINGS if name in one.settings}
    return Asked(together, origins)


def _in_form(site: Site, form: str | None) -> Site:
    return site if form is None else replace(site, forms=tuple(one for one in site.forms if one.name == form))


def _reason(site: Site, narrowed: Site, asked: Asked) -> str:
    if asked.override.exclude:
        return f"excluded by [[site]] {asked.origins['exclude']!r}"
    if narrowed.forms:
        return ""
    there = ", ".join(form.name for form in site.forms)
    return f"can be written as {there}, not as {asked.override.form}, which [[site]] {asked.origins['form']!r} asks for"


def _notes(overrides: Sequence[SiteOverride], names: Sequence[str], skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """On patterns that fit only what is left alone anyway; `UsageError` for those that fit nothing."""
    found = []
    for one in overrides:
        if matches(one.match, names):
            continue
        left_alone = next((node for node in skipped if matches(one.match, [node.name])), None)
        if left_alone is None:
            raise UsageError(f"site {one.match!r}: no node and no weight has such a name: {_near(one.match, names)}")
        if not one.exclude:
            name, reason = left_alone.name, left_alone.reason
            found.append(f"[[site]] {one.match!r} has no effect: {name!r} is left alone: {reason}")
    return tuple(found)


def filter_notes(sites: Sequence[Site], skipped: Sequence[Skipped], config: Config) -> tuple[str, ...]:
    """On patterns of ``--include`` and ``--exclude`` that fit nothing: a file for several models may have such."""
    names = [name for site in sites for name in (site.weight.name, site.name)]
    every = [*names, *(node.name for node in skipped)]
    return tuple(
        f"{flag} {pattern!r} has no effect: it fits no node, and no weight that can be factorized: "
        f"{_near(pattern, names)}"
        for flag, patterns in (("--include", config.include), ("--exclude", config.exclude))
        for pattern in patterns
        if not matches(pattern, every)
    )


def _near(pattern: str, names: Sequence[str]) -> str:
    bare = pattern.strip("*?")
    near = difflib.get_close_matches(bare, names, n=_NEAR, cutoff=0.5)
    near += [name for name in names if bare and bare.casefold() in name.casefold() and name not in near]
    shown = tuple(dict.fromkeys(near))[:_NEAR] or tuple(dict.fromkeys(names))[:_NEAR]
    if not shown:
        return "this model has no weight that can be factorized"
    return f"{'did you mean' if near else 'there is'} {' or '.join(map(repr, shown))}{'?' if near else ', for one'}"
