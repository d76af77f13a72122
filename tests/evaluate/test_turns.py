from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.errors import ModelError, OutputError
from lowrank_onnx.evaluate import turns
from lowrank_onnx.evaluate.compare import compare_outputs
from lowrank_onnx.evaluate.session import Session, open_session
from lowrank_onnx.evaluate.turns import (
    MEMORY_OF_FILE,
    Sessions,
    TurnSession,
    pair_outputs,
    plan_sessions,
    take_turns,
)
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Feed
from tests.evaluate.fakes import FunctionSession, as_feeds
from tests.tiny_model import classifier

CPU = Provider("CPUExecutionProvider")
FEEDS = as_feeds([np.full((2, 3), index, np.float32) for index in range(5)])


class Counted(FunctionSession):
    """A session whose opening is written down."""

    overridable = ()
    nodes = None
    providers_used = ("CPUExecutionProvider",)


class Hall:
    """Opens sessions by turns and keeps a log of what is opened and run."""

    def __init__(self, directory: Path | None = None) -> None:
        self.sessions = Sessions(one_at_a_time=True, directory=directory)
        self.log: list[str] = []

    def open(self, name: str, function: Callable[[Feed], Any]) -> Any:
        def run(feed: Feed) -> dict[str, Any]:
            self.log.append(f"{name}{int(feed['x'][0, 0])}")
            return {"y": function(feed)}

        def start() -> Any:
            self.log.append(f"open {name}")
            return Counted(run)

        return self.sessions.open(start)


def test_sessions_stay_open_unless_they_take_turns() -> None:
    session = open_session(classifier().SerializeToString())
    sessions = Sessions()
    assert sessions.open(lambda: session) is session
    sessions.rest()
    assert take_turns(session, session) is None


def test_a_turn_session_says_what_its_session_says() -> None:
    def start() -> Session:
        return open_session(classifier().SerializeToString())

    plain, session = start(), Sessions(one_at_a_time=True).open(start)
    assert isinstance(session, TurnSession)
    for name in ("inputs", "outputs", "overridable", "nodes", "providers_used"):
        assert getattr(session, name) == getattr(plain, name)
    feed = {"x": np.ones((2, 128), np.float32)}
    assert np.array_equal(session.run(feed)["y"], plain.run(feed)["y"])
    with pytest.raises(ModelError, match="run the model"):
        session.run(feed, ["z"])


def test_every_session_knows_the_logits_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for one_at_a_time in (False, True):
        sessions = plan_sessions(one_at_a_time, 10, CPU, logits=["y"])
        for _ in range(2):
            opened = sessions.open(lambda: open_session(classifier().SerializeToString()))
            assert opened.logits == {"y"}
    assert open_session(classifier().SerializeToString()).logits == frozenset()


def test_who_runs_takes_the_others_place() -> None:
    hall = Hall()
    first, second = hall.open("a", lambda feed: feed["x"]), hall.open("b", lambda feed: feed["x"])
    feed = next(iter(FEEDS))
    for session in (second, second, first, first, second):
        session.run(feed)
    assert hall.log == ["open a", "open b", "b0", "b0", "open a", "a0", "a0", "open b", "b0"]
    hall.sessions.rest()
    hall.sessions.rest()
    second.run(feed)
    assert hall.log[-2:] == ["open b", "b0"]


def test_each_model_runs_on_all_feeds_at_a_stretch(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    first, second = hall.open("a", lambda feed: feed["x"]), hall.open("b", lambda feed: -feed["x"])
    assert take_turns(first, second) is hall.sessions
    found = list(pair_outputs(first, second, FEEDS))
    assert [float(feed["x"][0, 0]) for feed, _, _ in found] == [0, 1, 2, 3, 4]
    assert all(np.array_equal(y["y"], feed["x"]) and np.array_equal(z["y"], -feed["x"]) for feed, y, z in found)
    runs = ["a0", "a1", "a2", "a3", "a4", "open b", "b0", "b1", "b2", "b3", "b4"]
    assert hall.log == ["open a", "open b", "open a", *runs]
    assert os.listdir(tmp_path) == []


def test_outputs_beyond_the_bound_cost_more_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_KEPT", 100)  # one feed's outputs are below it, two above
    hall = Hall(tmp_path)
    first, second = hall.open("a", lambda feed: feed["x"]), hall.open("b", lambda feed: feed["x"])
    assert len(list(pair_outputs(first, second, FEEDS))) == 5
    runs = [entry for entry in hall.log[2:] if not entry.startswith("open")]
    assert runs == ["a0", "a1", "b0", "b1", "a2", "a3", "b2", "b3", "a4", "b4"]


def test_statistics_are_the_same_side_by_side_and_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def original(feed: Feed) -> Any:
        return np.sin(feed["x"])

    def candidate(feed: Feed) -> Any:
        return np.sin(feed["x"]) + np.float32(1e-3)

    beside = compare_outputs(
        FunctionSession(lambda feed: {"y": original(feed)}), FunctionSession(lambda feed: {"y": candidate(feed)}), FEEDS
    )
    for bound in (2**32, 1):
        monkeypatch.setattr(turns, "MOST_KEPT", bound)
        hall = Hall(tmp_path)
        assert compare_outputs(hall.open("a", original), hall.open("b", candidate), FEEDS) == beside


@pytest.mark.parametrize(("role", "broken"), [("original", "a"), ("candidate", "b")])
def test_a_model_that_fails_is_named_with_its_feed(role: str, broken: str) -> None:
    hall = Hall()

    def fail(feed: Feed) -> Any:
        if feed["x"][0, 0] == 3:
            raise ModelError("no")
        return feed["x"]

    first, second = (hall.open(name, fail if name == broken else lambda feed: feed["x"]) for name in "ab")
    with pytest.raises(ModelError, match=f"the {role} on feed 3: no"):
        list(pair_outputs(first, second, FEEDS))


def test_no_room_for_outputs(tmp_path: Path) -> None:
    hall = Hall(tmp_path / "missing")
    with pytest.raises(OutputError, match="can't be kept there"):
        list(pair_outputs(hall.open("a", lambda feed: 0), hall.open("b", lambda feed: 0), FEEDS))


def test_turns_are_taken_where_two_models_dont_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1_000_000
    need = int(MEMORY_OF_FILE * size)
    for room, short in ((need, False), (need - 1, True), (None, False)):
        monkeypatch.setattr(turns, "available_memory", lambda room=room: room)
        sessions = plan_sessions(None, size, CPU)
        assert sessions.one_at_a_time is short
        assert bool(sessions.note) is short
    monkeypatch.setattr(turns, "available_memory", lambda: 0)
    assert "memory is short for two" in plan_sessions(None, size, Provider("cpu")).note
    assert not plan_sessions(None, size, Provider("CUDAExecutionProvider")).one_at_a_time  # its weights aren't there


def test_what_was_asked_for_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turns, "available_memory", lambda: 0)
    assert not plan_sessions(False, 10, CPU).one_at_a_time
    monkeypatch.setattr(turns, "available_memory", lambda: 10**12)
    sessions = plan_sessions(True, 10, CPU, tmp_path)
    assert sessions.one_at_a_time
    assert sessions.directory == tmp_path
    assert sessions.note == (
        "the models ran one at a time (--one-session): latency is from alternating blocks of runs, with models loaded "
        "in between, not from interleaved pairs"
    )
