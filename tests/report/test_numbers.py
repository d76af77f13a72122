from __future__ import annotations

import math

import pytest

from lowrank_onnx.report.numbers import count, fraction, kept, plural, short_count, significant, size


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.03121, "0.0312"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (123.45, "123"),
        (1234.5, "1230"),
        (1234567.0, "1.23e+06"),
        (1e-9, "1e-09"),
        (-0.5, "-0.500"),
        (math.nan, "NaN"),
        (math.inf, "infinity"),
        (-math.inf, "-infinity"),
    ],
)
def test_significant(number: float | None, shown: str) -> None:
    assert significant(number) == shown


def test_counts() -> None:
    assert [count(n) for n in (None, 0, 1234567)] == ["-", "0", "1,234,567"]
    assert [short_count(n) for n in (None, 0, 999, 1000, 2_359_296, 10**12)] == [
        "-", "0", "999", "1.00 k", "2.36 M", "1.00 T",
    ]  # fmt: skip


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 999_499, 999_500, 10_012_345, 6 * 10**9)] == [
        "-", "0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "10.0 MB", "6.00 GB",
    ]  # fmt: skip


def test_shares() -> None:
    assert kept(200, 50) == "0.250"
    assert kept(0, 0) == kept(None, 1) == kept(1, None) == "-"
    assert fraction(0.99225) == "0.9922"
    assert fraction(math.nan) == "NaN"
    assert fraction(None) == "-"


def test_nouns() -> None:
    assert [plural(n, "site") for n in (0, 1, 2000)] == ["0 sites", "1 site", "2,000 sites"]
    assert plural(2, "index", "indices") == "2 indices"
