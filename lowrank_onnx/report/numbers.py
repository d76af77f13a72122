"""Figures as a person reads them. Each function takes None for "not known" and then gives a dash."""

from __future__ import annotations

import math

UNKNOWN = "-"
"""What stands where a figure isn't known."""

_THOUSANDS = ("", " k", " M", " G", " T", " P")
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def count(number: int | None) -> str:
    """All digits, in groups of three."""
    return UNKNOWN if number is None else f"{number:,}"


def significant(number: float | None, digits: int = 3) -> str:
    """A few significant digits, without an exponent where that is readable; NaN and infinities by name."""
    if number is None:
        return UNKNOWN
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else f"{number:+}".replace("inf", "infinity").lstrip("+")
    rounded = float(f"{number:.{digits - 1}e}")
    if 1e-4 <= abs(rounded) < 1e6:
        decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
        return f"{rounded:.{decimals}f}"
    return f"{number:.{digits}g}"


def fraction(number: float | None, digits: int = 4) -> str:
    """A share with a fixed number of decimals."""
    if number is None or math.isnan(number):
        return significant(number)
    return f"{number:.{digits}f}"


def passes(seconds: float, one_pass: float | None) -> str:
    """A time in passes of the original over the feeds: whole ones from ten on."""
    if not one_pass:
        return UNKNOWN
    number = seconds / one_pass
    return count(round(number)) if number >= 10.0 else significant(number, 2)


def short_count(number: int | None) -> str:
    """Three significant digits and k, M, G, ... for a thousand, a million, ..."""
    if number is None:
        return UNKNOWN
    value, power = _in_thousands(number)
    return f"{number}" if power == 0 else f"{significant(value)}{_THOUSANDS[power]}"


def size(number: int | None) -> str:
    """Bytes in decimal units (1 MB = 1,000,000 B)."""
    if number is None:
        return UNKNOWN
    value, power = _in_thousands(number)
    return f"{number} B" if power == 0 else f"{significant(value)} {_DECIMAL_UNITS[power]}"


def _in_thousands(number: int) -> tuple[float, int]:
    value, power = float(number), 0
    while value >= 999.5 and power < len(_DECIMAL_UNITS) - 1:
        value, power = value / 1000, power + 1
    return value, power


def kept(before: int | None, after: int | None) -> str:
    """What share of `before` is left in `after`."""
    if before is None or after is None or before == 0:
        return UNKNOWN
    return f"{after / before:.3f}"


def plural(number: int, singular: str, several: str | None = None) -> str:
    """A count with its noun."""
    return f"{number:,} {singular if number == 1 else several or singular + 's'}"
