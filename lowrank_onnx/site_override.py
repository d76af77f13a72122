"""Options of single weights, by pattern: the ``[[site]]`` tables of a configuration file, and the flag ``--site``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lowrank_onnx.errors import UsageError
from lowrank_onnx.vocabulary import FORM_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOverride:
    """What is asked of the weights whose name, or whose node's name, `match` fits. None leaves an option as it is.

    Parameters
    ----------
    match : a glob as for ``--include``: case-sensitive, ``*`` also matches ``/`` and ``.``. A weight that several nodes
        share is matched by the name of any of them.
    rank : its rank, whatever the budget says of other weights, and not rounded to `rank_multiple`. It stays dense only
        where factors of that rank would not be smaller.
    form : the one form that it may be written in.
    exclude : True leaves it as it is.
    sensitivity : its damage counts this many times in plans over the whole model; above 1 it is spared.

    Raises
    ------
    UsageError
        A value is out of its range, or there is nothing but `match`.
    """

    match: str
    rank: int | None = None
    form: str | None = None
    exclude: bool | None = None
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        if not self.match:
            raise UsageError("site: match is empty: expected a glob on names of nodes or weights, e.g. 'encoder.*'")
        if not self.settings:
            raise UsageError(f"site {self.match!r}: asks for nothing: expected some of {', '.join(SETTINGS)}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"site {self.match!r}: rank {self.rank}: expected a whole number of at least 1")
        if self.form is not None and self.form not in FORM_NAMES:
            raise UsageError(f"site {self.match!r}: form {self.form!r}: expected one of {', '.join(FORM_NAMES)}")
        if self.sensitivity is not None and not 0.0 < self.sensitivity < math.inf:
            raise UsageError(f"site {self.match!r}: sensitivity {self.sensitivity:g}: expected a number above 0")

    @property
    def settings(self) -> dict[str, Any]:
        """What it asks for, by name."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}

    def described(self) -> str:
        """In one phrase, e.g. "rank 64, form pair"."""
        return described(self.settings)

    def overlaid(self, later: SiteOverride) -> SiteOverride:
        """What it asks for, with what a later one asks for in place of it, option by option."""
        return replace(self, **later.settings)


SETTINGS = tuple(field.name for field in fields(SiteOverride) if field.name != "match")


def described(settings: Mapping[str, Any]) -> str:
    """Settings in one phrase."""
    return ", ".join(
        ("exclude" if value else "not excluded")
        if name == "exclude"
        else f"{name} {value:g}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in settings.items()
    )


def site_override(content: Mapping[str, Any]) -> SiteOverride:
    """From a ``[[site]]`` table.

    Raises
    ------
    UsageError
        A key or a value is not what a site has; the message has a suggestion.
    """
    known = ("match", *SETTINGS)
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
            raise UsageError(f"site {content.get('match', '')!r}: unknown key {key!r}: {hint}")
    match = content.get("match")
    if not isinstance(match, str):
        raise UsageError("site: match is missing: expected a glob on names of nodes or weights, e.g. 'encoder.*'")
    kinds: Mapping[str, tuple[tuple[type, ...], str]] = {
        "rank": ((int,), "a whole number, e.g. rank = 64"),
        "form": ((str,), "the name of a form, e.g. form = 'pair'"),
        "exclude": ((bool,), "true or false"),
        "sensitivity": ((int, float), "how many times its damage counts, e.g. sensitivity = 4"),
    }
    for name, (types, expected) in kinds.items():
        value = content.get(name)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool) != (types == (bool,))):
            raise UsageError(f"site {match!r}: {name} is {value!r}: expected {expected}")
    factor = content.get("sensitivity")
    return SiteOverride(
        match=match,
        rank=content.get("rank"),
        form=content.get("form"),
        exclude=content.get("exclude"),
        sensitivity=None if factor is None else float(factor),
    )


def parse_site(text: str) -> SiteOverride:
    """From ``MATCH:rank=64,form=pair,exclude,sensitivity=4``: what follows the last colon are the settings.

    Raises
    ------
    UsageError
        As `site_override`.
    """
    match, colon, settings = text.rpartition(":")
    if not colon:
        raise UsageError(f"site {text!r}: expected MATCH:SETTING[,SETTING], e.g. 'encoder.*:rank=64,form=pair'")
    return site_override({"match": match, **dict(_setting(part) for part in settings.split(",") if part.strip())})


def _setting(part: str) -> tuple[str, Any]:
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if name == "exclude" and value in ("", "true", "false"):
        return name, value != "false"
    for kind in (int, float) if equals and name != "form" else ():
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def overlaid(overrides: Iterable[SiteOverride]) -> SiteOverride | None:
    """All that several ask for: later ones win, option by option. None where there are none."""
    found: SiteOverride | None = None
    for one in overrides:
        found = one if found is None else found.overlaid(one)
    return found
