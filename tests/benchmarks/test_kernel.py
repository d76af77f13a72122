"""The kernel benchmark runs, and its report says what its cases say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.kernel_measure import (
    MOST_ITERATIONS,
    Case,
    Run,
    fewest_iterations,
    iterations_before,
    ranks_for,
    spectral_error,
)
from benchmarks.kernel_report import markdown, spent_flops, verdicts
from benchmarks.spectra import SPECTRA, matrix


def case(**changes: Any) -> dict[str, Any]:
    def run(solver: str, seconds: float, spectral: float) -> dict[str, Any]:
        return {"solver": solver, "detail": "d", "seconds": seconds, "spectral": spectral, "frobenius": 1.0}

    runs = [
        run("auto", 1.0, 1.01),
        run("rsi", 2.0, 1.1),
        run("sklearn", 3.0, 1.2),
        run("torch", 8.0, 1.04),
        run("exact", 50.0, 1.0),
    ]
    base = {"rows": 4096, "columns": 4096, "rank": 200, "spectrum": "slow", "floor_seconds": 0.5, "gemm_rate": 1e12}
    return base | {"runs": runs} | changes


def test_a_peer_counts_only_where_it_is_accurate() -> None:
    lines = "\n".join(verdicts([case()]))
    assert "takes 8.0 times as long (geometric mean over 1 cases" in lines
    assert "Largest normalised spectral error: 1.0100" in lines
    assert "Most times the floor: 2.0 (4096 x 4096, r=200, slow); 0 cases above 6." in lines
    assert "Exact SVD where min(m, n) >= 2048: 50.0 times" in lines


def test_a_faster_peer_and_a_missed_floor_are_said() -> None:
    slow = case(floor_seconds=0.01)
    slow["runs"][3]["seconds"] = 0.5
    lines = "\n".join(verdicts([slow, case()]))
    assert "it is faster in 1." in lines
    assert "100.0 (4096 x 4096, r=200, slow); 1 cases above 6." in lines
    assert verdicts([]) == ["No cases."]


def test_the_paper_has_its_own_table() -> None:
    paper = case(columns=25088)
    paper["runs"].append({"solver": "rsi q=2", "detail": "", "seconds": 0.5, "spectral": 1.3, "frobenius": 1.0})
    machine = {"processor": "p", "blas": "b", "threads": 1, "python": "3", "peers": ["torch 2"]}
    text = markdown({"machine": machine, "clock": "wall", "cases": [paper]})
    assert "Python 3, torch 2;" in text
    assert "| 200 | slow | rsi q=2 | 0.5 | 100.0 | 1.300 | 76 |" in text
    assert "| 4096 x 25088 | 200 | slow | 1 | 1.010 |" in text


@pytest.mark.parametrize(
    ("detail", "flops"),
    [
        ("eigen(n=10)", 100 * 10 * 10 + 4 * 1000 + 2 * 100 * 10 * 3),
        ("krylov(b=2, d=6, direct)", 4 * 10 * 64 + 4 * 216 + 2 * 10 * 6 * 3 + 4 * 1000 * 8 + 2 * 100 * 6 * 3),
        ("chebyshev(l=4, degree=3)", 10000 + 2 * 100 * 4 * 5 + 4 * 10 * 16 * 3 + 2 * 1000 * 3),
        ("krylov(b=2, d=6, gram)", 4 * 10 * 64 + 4 * 216 + 360 + 10000 + 2 * 100 * 8 + 2 * 1000 * 3),
    ],
)
def test_the_flops_are_those_of_the_solver(detail: str, flops: float) -> None:
    measured = case(rows=10, columns=100, rank=3)
    measured["runs"][0]["detail"] = detail
    assert spent_flops(measured) == flops


def test_a_search_starts_where_a_peer_ended_at_the_most_similar_share() -> None:
    def done(rows: int, rank: int, spectrum: str, iterations: int) -> Case:
        return Case(rows, rows, rank, spectrum, 1.0, 1.0, [Run("sklearn", f"n_iter={iterations}", 1.0, 1.0, 1.0)])

    large = Case(4096, 4096, 1000, "slow", 1.0, 1.0)
    cases = [done(800, 100, "slow", 4), done(800, 200, "slow", 7), done(800, 200, "step", 1)]
    assert iterations_before("sklearn", cases, large) == 7
    assert iterations_before("torch", cases, large) == 2


@pytest.mark.parametrize("guess", [0, 2, 5, 7, 12])
def test_a_peer_runs_as_often_as_it_has_to_and_no_more(guess: int) -> None:
    for needed in (0, 1, 5, 6, MOST_ITERATIONS):
        assert fewest_iterations(needed.__le__, guess) == needed
    assert fewest_iterations((MOST_ITERATIONS + 1).__le__, guess) == MOST_ITERATIONS


def test_ranks_are_those_of_the_grid() -> None:
    assert ranks_for((768, 3072), quick=False) == [96, 192, 384]
    assert ranks_for((4096, 25088), quick=False) == [200, 512, 1000, 2048]
    assert ranks_for((768, 768), quick=True) == [96, 192]


def test_the_judge_measures_the_spectral_error() -> None:
    W = matrix((300, 200), SPECTRA["slow"](200), seed=0)
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    assert spectral_error(W, (U[:, :20] * s[:20], Vt[:20])) == pytest.approx(s[20], rel=2e-3)


def test_the_command_measures_and_saves(tmp_path: Path) -> None:
    out = tmp_path / "kernel.json"
    command = [sys.executable, "-m", "benchmarks.kernel", "--shapes", "64x48", "--spectra"]
    seen: list[dict[str, Any]] = []
    root = Path(__file__).parents[2]
    for spectrum, more in (("slow", ()), ("trained", ("--resume",))):
        arguments = [*command, spectrum, "--out", str(out), *more]
        done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(out.read_text())["cases"][: len(seen)] == seen
        seen = json.loads(out.read_text())["cases"]
    cases = json.loads(out.read_text())["cases"]
    assert [(c["spectrum"], c["rank"]) for c in cases] == [(s, r) for s in ("slow", "trained") for r in (6, 12, 24)]
    stored = json.loads(out.read_text())
    stored["machine"]["processor"] = "another"
    out.write_text(json.dumps(stored))
    refused = subprocess.run(
        [*command, "slow", "--out", str(out), "--resume"], cwd=root, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "made on another machine" in refused.stderr
    for measured in cases:
        auto = next(run for run in measured["runs"] if run["solver"] == "auto")
        assert 0.99 <= auto["spectral"] <= 1.02
        assert auto["seconds"] > 0.0
    assert "64 x 48 | 6 | slow" in out.with_suffix(".md").read_text()
