"""A walk that was broken off goes on at the step that it had reached, and ends with the same bytes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lowrank_onnx
from lowrank_onnx import Config, KeepParams
from lowrank_onnx import cache as cache_module
from lowrank_onnx.cache import Cache, open_cache
from lowrank_onnx.cache.entry_file import write_entry
from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.evaluate.turns import Sessions
from lowrank_onnx.model_io import model_bytes
from lowrank_onnx.refine import refine_factors, walk
from lowrank_onnx.refine.judges import judge
from lowrank_onnx.refine.pieces import Bounds, Track
from tests.cache.killed import kill_at_entry
from tests.refine.builders import OPTIONS, inputs, layers, workshop

DEPTH = 5
FEEDS = inputs(8)


class Bench:
    """A small model, its plan, and a cache; counts the steps that are really solved, and the pieces that are run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.solved: list[str] = []
        self.pieces: list[int] = []
        self.place = directory / "cache"
        self.shop, self.choices = workshop(layers(DEPTH), FEEDS, directory, 6)
        solve, run = walk._solve_step, Track.run_to

        def counted_solve(work: Any, models: Any, number: int, step: Any, cuts: list[int], start: float) -> Any:
            self.solved.append(step.members[0].replaced.weight.name)
            return solve(work, models, number, step, cuts, start)

        def counted_run(track: Track, cut: int, *asked: Any) -> None:
            self.pieces.append(cut)
            run(track, cut, *asked)

        monkeypatch.setattr(walk, "_solve_step", counted_solve)
        monkeypatch.setattr(Track, "run_to", counted_run)

    def cache(self) -> Cache:
        return open_cache(self.place, lambda: ("this machine",))

    def run(self, **options: Any) -> tuple[bytes, Any, Cache]:
        self.solved.clear()
        self.pieces.clear()
        kept, shop = self.cache(), self.shop
        refined = refine_factors(shop, self.choices, OPTIONS, cache=kept, **options)
        model = build_candidate(shop.model, shop.groups, self.choices, refined.spool, measure=False).model
        return model_bytes(model), refined.report, kept


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


class BrokenOffError(Exception):
    """What breaks a run off."""


def break_at(entry: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the writing of one entry fail in a way that nothing catches."""
    left = entry

    def write(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise BrokenOffError
        write_entry(*arguments)

    monkeypatch.setattr(cache_module, "write_entry", write)


def test_a_second_walk_runs_nothing_and_gives_the_same(bench: Bench) -> None:
    first, report, _ = bench.run()
    assert bench.solved == [f"w{number}" for number in range(DEPTH)]
    assert report.weights[-1].refined
    again, repeated, kept = bench.run()
    assert (bench.solved, bench.pieces) == ([], [])
    assert (again, repeated, kept.notes) == (first, report, ())


@pytest.mark.parametrize(("entry", "solved"), [(1, 5), (2, 4), (4, 3), (9, 1), (10, 0)])
def test_a_walk_that_was_broken_off_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, entry: int, solved: int
) -> None:
    """The first step writes one entry, every later one its factors and then itself, the trial one."""
    with monkeypatch.context() as patch:
        break_at(entry, patch)
        with pytest.raises(BrokenOffError):
            bench.run()
    resumed, report, kept = bench.run()
    assert len(bench.solved) == solved
    bench.place = bench.place.with_name("another")
    whole, expected, _ = bench.run()
    assert len(bench.solved) == DEPTH
    assert (resumed, report, kept.notes) == (whole, expected, ())


def test_what_a_walk_begins_with_names_its_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch)

    def begin(name: str, rank: int = 6, *, seed: int = 1, whiten: bool = True) -> None:
        (tmp_path / name).mkdir()
        feeds = inputs(8, 48, seed=seed)
        bench.shop, bench.choices = workshop(layers(DEPTH), feeds, tmp_path / name, rank, whiten=whiten)

    begin("first")
    _, report, _ = bench.run()
    assert bench.run()[1] == report
    assert not bench.solved
    bench.run(bounds=Bounds(memory=2**29))
    assert len(bench.solved) == DEPTH
    for name, change in (("feeds", {"seed": 5}), ("rank", {"rank": 7}), ("factors", {"whiten": False})):
        begin(name, **change)
        bench.run()
        assert len(bench.solved) == DEPTH, name
    begin("as before")
    assert bench.run()[1] == report
    assert not bench.solved


def test_damaged_entries_are_solved_anew(bench: Bench) -> None:
    whole, report, _ = bench.run()
    entries = sorted(bench.place.rglob("*.entry"))
    for path in entries:
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content)
    resumed, repeated, kept = bench.run()
    assert (resumed, repeated) == (whole, report)
    assert len(bench.solved) == DEPTH
    assert kept.notes
    assert all(note.endswith(": ignored, and computed anew") for note in kept.notes)


def test_a_step_without_its_factors_is_solved_anew(bench: Bench) -> None:
    whole, _, _ = bench.run()
    next(bench.place.glob("refined factors/*")).unlink()
    assert bench.run()[0] == whole
    assert len(bench.solved) == 1


CONFIG = Config(budget=KeepParams(0.6), objective="size", validate=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_compression_that_was_killed_in_the_walk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch)
    onnx.save(layers(DEPTH), tmp_path / "model.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.concatenate([feed["x"] for feed in inputs(16)]))
    kill_at_entry(tmp_path, 4, "tests.refine.test_kept:CONFIG", kinds="refine")
    assert not (tmp_path / "small.onnx").exists()

    def compress(cache: Path | None, output: str) -> bytes:
        bench.solved.clear()
        result = lowrank_onnx.compress(
            tmp_path / "model.onnx", CONFIG, feeds=tmp_path / "feeds.npz", output=tmp_path / output, cache=cache
        )
        assert (result.status, result.notes) == ("written", ())
        return (tmp_path / output).read_bytes()

    resumed = compress(tmp_path / "cache", "small.onnx")
    left = len(bench.solved)
    assert resumed == compress(None, "whole.onnx")
    assert 0 < left < len(bench.solved)


def test_what_outputs_are_compared_as_names_the_trial_and_nothing_before_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    real = judge

    def counted(*args: Any) -> Any:
        judged.append("judged")
        return real(*args)

    monkeypatch.setattr("lowrank_onnx.refine.stage.judge", counted)
    _, plain, _ = bench.run()
    declared = replace(bench.shop.original, sessions=Sessions(logits=["y"]))
    session = declared.open(tmp_model(bench))
    bench.shop = replace(bench.shop, observed=replace(declared, session=session))
    judged.clear()
    _, report, _ = bench.run()
    assert judged
    assert (bench.solved, bench.pieces) == ([], [])
    assert report.error_before != plain.error_before
    judged.clear()
    assert bench.run()[1] == report
    assert not judged


def tmp_model(bench: Bench) -> Path:
    path = bench.place.with_name("original.onnx")
    path.write_bytes(model_bytes(bench.shop.model))
    return path
