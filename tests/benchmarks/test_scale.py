"""Fits of growth, the page made of them, and that what is measured is what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn (extra bench)")

from benchmarks import scale
from benchmarks.peak_memory import peak_memory
from benchmarks.scale_report import fit, fits, large_model, write_pages


def row(what: str, variable: str, value: int, seconds: float, gigabytes: float = 0.1) -> dict[str, Any]:
    return {
        "what": what,
        "variable": variable,
        "value": value,
        "size": "default",
        "seconds": seconds,
        "gigabytes": gigabytes,
        "error": 0.1,
        "date": "2026-01-02",
        "machine": "a machine",
        "versions": {"numpy": "2"},
    }


WIDTHS = [row("kernel", "width", n, (n / 4096) ** 3, (n / 4096) ** 2) for n in (256, 512, 1024, 2048, 4096)]
PRODUCT = row("product", "width", 1000, 0.02)


def test_an_exponent_is_found_where_constant_costs_no_longer_count() -> None:
    values = [2.0, 4.0, 8.0, 16.0, 32.0]
    assert fit(values, [3.0 * value**1.5 for value in values]).exponent == pytest.approx(1.5)
    found = fit(values, [1000.0, 1000.0, *(value**2 for value in values[2:])])
    assert found.exponent == pytest.approx(2.0, abs=1e-9)
    assert found.at(100.0) == pytest.approx(1e4)


def test_seventy_billion_parameters_are_reckoned_from_the_fits() -> None:
    lines = "\n".join(large_model([*WIDTHS, PRODUCT], fits([*WIDTHS, PRODUCT])))
    assert "68.5 billion" in lines
    # 80 blocks at (m n min(m, n) / 4096^3) seconds.
    flops = 2 * 8192**3 + 2 * 8192 * 1024**2 + 3 * 8192**2 * 28672
    assert f"| time to factorize | {80 * flops / 4096**3 / 3600:.0f} h |" in lines
    assert f"| second moments on disk | {80 * 8 * (3 * 8192**2 + 28672**2) / 1e9:.0f} GB |" in lines
    assert "100 Gflop/s" in lines
    assert large_model([PRODUCT], {}) == []


def test_the_pages_are_the_same_for_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [*WIDTHS, PRODUCT, *(row("program", "feeds", n, n / 8) for n in (8, 16, 32))]
    pages = []
    for _ in range(2):
        write_pages(results, tmp_path)
        pages.append([(tmp_path / name).read_bytes() for name in ("scale.md", "scale.svg")])
    assert pages[0] == pages[1]
    text = pages[0][0].decode()
    assert "| kernel | width | 256 to 4096 | 3.00 | 2.00 | 0.00 |" in text
    assert "| program | feeds | 8 to 32 | 1.00 | 0.00 | 0.00 |" in text


def test_one_factorization_is_measured() -> None:
    seconds, stages, gigabytes, error = scale.measure_kernel(64, 16)
    assert seconds > 0.0
    assert stages == {}
    assert 64 * 64 * 12 / 1e9 < gigabytes < 0.01
    assert 0.01 < error < 1.0


def test_the_memory_of_a_command_is_its_own() -> None:
    small = peak_memory([sys.executable, "-c", "import time; time.sleep(0.1)"])
    large = peak_memory([sys.executable, "-c", "import time; x = b'a' * 50_000_000; time.sleep(0.1)"])
    assert 40_000_000 < large - small < 60_000_000
    with pytest.raises(RuntimeError, match="exit status 3"):
        peak_memory([sys.executable, "-c", "raise SystemExit(3)"])
