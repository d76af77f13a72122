"""One model in memory at a time: the same figures as with two, and never two sessions alive."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import lowrank_onnx
from lowrank_onnx import (
    Config,
    FixedRank,
    Gates,
    KeepParams,
    MaxDrop,
    MaxError,
    Metric,
    Speedup,
    attempt,
    judging,
    time_weights,
)
from lowrank_onnx.config import Budget
from lowrank_onnx.evaluate import turns
from lowrank_onnx.evaluate.output_file import OutputFile
from lowrank_onnx.evaluate.turns import TurnSession
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.types import LatencyComparison, Timing
from tests.tiny_model import classifier

SIZE = Config(budget=FixedRank(32), objective="size", effort="fast")
FEEDS: list[Mapping[str, np.ndarray]] = [
    {"x": np.random.default_rng(index).standard_normal((8, 128)).astype(np.float32)} for index in range(16)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the stop watch, not the judge; it runs both models, one after the other, as blocks do."""
    timing = Timing(1.0, 0.1, 10)

    def measure(original: Any, candidate: Any, *args: object, **kwargs: object) -> LatencyComparison:
        for model in (original, candidate):
            model.run(FEEDS[0])
        return LatencyComparison(timing, timing, 1.6, 1.5, 1.7, 0.95, 12)

    for module in (judging, attempt):
        monkeypatch.setattr(module, "measure_latency", measure)


class Census:
    """How many of onnxruntime's sessions are alive, and were at most."""

    def __init__(self) -> None:
        self.alive = self.most = self.opened = 0

    def born(self, session: object) -> None:
        self.opened += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(session, self.died)

    def died(self) -> None:
        self.alive -= 1


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> Census:
    counted, make = Census(), onnxruntime.InferenceSession

    def open_counted(*args: Any, **kwargs: Any) -> Any:
        session = make(*args, **kwargs)
        counted.born(session)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_counted)
    return counted


def accuracy(predict: Any) -> Any:
    """Of an answer that the original gives half of the time."""
    answers = [predict(feed)["y"].argmax(axis=1) for feed in FEEDS[:4]]
    return np.isin(np.concatenate(answers * 40), [0, 3, 6, 9])


def figures(result: lowrank_onnx.CompressionResult) -> Any:
    """All that doesn't depend on how models were held in memory."""
    verdict = result.verdict
    assert verdict is not None
    return (
        result.status,
        replace(verdict, notes=()),
        [(site.rank, site.form, site.relative_error) for site in result.sites],
        result.search,
        result.trials,
        result.refinement,
    )


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (FixedRank(32), {}),
        (KeepParams(0.5), {"effort": "default", "refine": False}),
        (KeepParams(0.5), {"effort": "default", "refine": True}),
        (MaxError(0.1), {}),
        (MaxDrop(0.2), {"metric": Metric.of(accuracy)}),
    ],
    ids=["rank", "sensitivity", "refinement", "search", "metric"],
)
def test_the_same_figures_and_file_with_one_session_alive(
    path: Path, tmp_path: Path, census: Census, budget: Budget, changes: dict[str, Any]
) -> None:
    config = replace(SIZE, budget=budget, **changes)
    beside = lowrank_onnx.compress(path, replace(config, one_session=False), feeds=FEEDS, output=tmp_path / "two.onnx")
    assert beside.status == "written"
    assert census.most >= 2
    assert census.alive == 0
    census.most = census.opened = 0
    turns = lowrank_onnx.compress(path, replace(config, one_session=True), feeds=FEEDS, output=tmp_path / "one.onnx")
    assert census.most == 1
    assert census.alive == 0
    assert census.opened > 2
    assert figures(turns) == figures(beside)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert turns.verdict is not None
    assert beside.verdict is not None
    assert beside.verdict.notes == ()
    (note,) = turns.verdict.notes
    assert note.startswith("the models ran one at a time (--one-session): latency is from alternating blocks of runs")


@pytest.mark.parametrize("budget", [KeepParams(0.5), Speedup(1.55)], ids=["share", "speedup"])
def test_no_model_is_held_while_weights_are_timed(
    path: Path, tmp_path: Path, census: Census, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    held: list[int] = []

    class Table:
        """Says that every rank is quick."""

        def curve(self, *args: object) -> LatencyCurve:
            held.append(census.alive)
            return LatencyCurve(10.0, (8, 24), (2.5, 7.5), 0.05)

    monkeypatch.setattr(time_weights, "LatencyTable", lambda *args, **options: Table())
    config = Config(budget=budget, effort="fast", forms=("pair",), rank_multiple=8, one_session=True)
    result = lowrank_onnx.compress(path, config, feeds=FEEDS, output=tmp_path / "small.onnx")
    assert result.status == "written"
    assert held
    assert set(held) == {0}
    assert (census.most, census.alive) == (1, 0)


def test_inspection_takes_turns_too(path: Path, census: Census) -> None:
    beside = lowrank_onnx.inspect(path, replace(SIZE, one_session=False))
    assert census.most == 2
    census.most = 0
    assert lowrank_onnx.inspect(path, replace(SIZE, one_session=True)) == beside
    assert census.most == 1


def damaged(path: Path) -> Path:
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), "w1"))
    onnx.save(model, path.with_name("damaged.onnx"))
    return path.with_name("damaged.onnx")


def test_two_files_are_compared_one_after_the_other(path: Path, census: Census) -> None:
    candidate = damaged(path)
    beside = lowrank_onnx.validate(path, candidate, Config(one_session=False), feeds=FEEDS)
    assert census.most == 2
    census.most = 0
    in_turns = lowrank_onnx.validate(path, candidate, Config(one_session=True), feeds=FEEDS)
    assert (census.most, census.alive) == (1, 0)
    assert replace(in_turns, notes=()) == beside
    assert in_turns.relative_error > 0.1


@pytest.mark.parametrize("one_session", [True, False])
def test_a_wrong_candidate_is_refused(path: Path, one_session: bool) -> None:
    config = Config(gates=Gates(max_error=0.1), one_session=one_session)
    assert lowrank_onnx.validate(path, path, config, feeds=FEEDS).passed
    verdict = lowrank_onnx.validate(path, damaged(path), config, feeds=FEEDS)
    assert not verdict.passed
    assert "above --max-error 0.1" in verdict.failures[0]


def test_turns_are_taken_by_themselves_where_memory_is_short(
    path: Path, census: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = int(turns.MEMORY_OF_FILE * 2 * path.stat().st_size)
    for available, most in ((room, 2), (room - 1, 1)):
        monkeypatch.setattr(turns, "available_memory", lambda available=available: available)
        census.most = 0
        verdict = lowrank_onnx.validate(path, path, feeds=FEEDS)
        assert census.most == most
        assert ["memory is short for two" in note for note in verdict.notes] == [True] * (2 - most)
        census.most = 0
        compressed = lowrank_onnx.compress(path, SIZE, feeds=FEEDS).verdict
        assert census.most == most
        assert compressed is not None
        assert compressed.notes == verdict.notes


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_behind(
    path: Path, tmp_path: Path, census: Census, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """Interrupted in the candidate's turn, when the original's outputs lie on disk."""
    place = tmp_path / "out"
    place.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    run, kept = TurnSession.run, OutputFile.add
    written: list[int] = []

    def count(self: OutputFile, value: Any) -> None:
        kept(self, value)
        written.append(self.nbytes)

    def interrupt(self: TurnSession, feed: Any, outputs: Any = None) -> Any:
        if len(written) >= 4:
            raise stop
        return run(self, feed, outputs)

    monkeypatch.setattr(OutputFile, "add", count)
    monkeypatch.setattr(TurnSession, "run", interrupt)
    config = replace(SIZE, one_session=True)
    with pytest.raises(stop):
        lowrank_onnx.compress(path, config, feeds=FEEDS, output=place / "small.onnx")
    assert len(written) == 4
    written.clear()
    with pytest.raises(stop):
        lowrank_onnx.validate(path, path, config, feeds=FEEDS[:4])
    assert len(written) == 4
    assert os.listdir(place) == os.listdir(temporary) == []
