"""A short run of the fuzz target, and that it notices what it is there for."""

from __future__ import annotations

import random
import textwrap
from pathlib import Path

import pytest

from lowrank_onnx import cli
from tests.fuzz.campaign import Finding, Worker, run_campaign
from tests.fuzz.case import ReadGuard, Target
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import make_seeds, write_seed

SHORT = 100
"""Inputs of the short run; `python -m tests.fuzz --minutes 60` is the long one."""


@pytest.fixture(scope="module")
def target() -> Target:
    return Target()


def test_nothing_is_found_in_a_short_run() -> None:
    found: list[Finding] = []
    done = run_campaign(Worker(), 0, count=SHORT, seconds=600, report=lambda number, findings: found.extend(findings))
    assert found == []
    assert done == SHORT


@pytest.mark.slow
def test_nothing_is_found_in_a_long_run() -> None:
    found: list[Finding] = []
    run_campaign(Worker(), 10**6, count=None, seconds=3600, report=lambda number, findings: found.extend(findings))
    assert found == []


def test_undamaged_seeds_are_compressed(tmp_path: Path) -> None:
    for index, seed in enumerate(make_seeds()):
        folder = tmp_path / str(index)
        folder.mkdir()
        model = write_seed(seed, folder)
        arguments = ["compress", str(model), "-o", str(folder / "small.onnx"), "--rank", "2", "--objective", "size"]
        assert cli.main([*arguments, "--no-validate"]) == 0
        assert (folder / "small.onnx").exists()


def test_cases_are_told_by_their_numbers(target: Target) -> None:
    assert target.seed_of(7) == target.seed_of(7)
    damaged = sum(mutate(seed, random.Random(1)) != seed for seed in make_seeds())
    assert damaged >= 15


def test_reads_outside_are_noticed(tmp_path: Path) -> None:
    guard = ReadGuard()
    (tmp_path / "inside").mkdir()
    for place in ("inside/a", "b"):
        (tmp_path / place).write_bytes(b"")
    with guard.only(tmp_path / "inside"):
        (tmp_path / "inside" / "a").read_bytes()
        assert guard.strays == []
        (tmp_path / "b").read_bytes()
    assert guard.strays == [str(tmp_path / "b")]


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (lambda arguments: 70, "exit code 70"),
        (lambda arguments: print("\x1b[31m") or 3, "control characters were printed"),
        (lambda arguments: print("Traceback (most recent call last)") or 3, "a traceback was printed"),
        (lambda arguments: Path(arguments[3]).write_bytes(b"") or 3, "left behind: ['small.onnx']"),
        (lambda arguments: Path(arguments[3]).write_bytes(b"") * 0, "the output can't be read"),
        (lambda arguments: Path(arguments[1]).write_bytes(b"") * 0 + 3, "the input was changed"),
        (lambda arguments: 1 / 0, "uncaught: Traceback"),
    ],
)
def test_each_kind_of_finding_is_noticed(
    outcome: object, problem: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "main", outcome)
    (found,) = target.run(3)
    assert found.startswith(problem)


def test_deaths_and_hangs_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
        import os, sys, time
        for line in sys.stdin:
            if int(line) == 1:
                os.kill(os.getpid(), 11)
            if int(line) == 2:
                time.sleep(60)
            print("[]", flush=True)
    """
    (tmp_path / "sick_worker.py").write_text(textwrap.dedent(script))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(module="sick_worker", seconds=10.0)
    found: list[Finding] = []
    assert run_campaign(worker, 0, count=4, seconds=300, report=lambda number, findings: found.extend(findings)) == 4
    assert [finding.number for finding in found] == [1, 2]
    assert found[0].problem == "the process died: exit status -11"
    assert found[1].problem == "no answer within 10 s"
