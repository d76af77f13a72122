"""Patterns of names, as options give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern fits any of the names: as a glob (case-sensitive; ``*`` also matches ``/``), or as it is."""
    regex = re.compile(translate(pattern))
    return any(pattern == name or regex.match(name) for name in names)
