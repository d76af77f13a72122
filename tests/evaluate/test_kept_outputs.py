"""The original runs once on each feed however many models are compared with it, unless its outputs take too much."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.errors import ModelError, OutputError
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.output_file import OutputFile
from lowrank_onnx.evaluate.turns import Sessions
from lowrank_onnx.types import Feed
from tests.evaluate.fakes import FunctionSession, as_feeds

FEEDS = as_feeds([np.full((2, 3), index, np.float32) for index in range(5)])


def original() -> FunctionSession:
    return FunctionSession(lambda feed: {"y": feed["x"] + 1})


def candidate(shift: float) -> FunctionSession:
    return FunctionSession(lambda feed: {"y": feed["x"] + shift})


def compared(kept: KeptOutputs, shift: float) -> list[tuple[float, float, float]]:
    model = candidate(shift)
    found = [
        (float(feed["x"][0, 0]), float(expected["y"][0, 0]), float(actual["y"][0, 0]))
        for feed, expected, actual in kept.pair_with(model)
    ]
    assert model.runs == len(FEEDS)
    return found


def pairs(shift: float) -> list[tuple[float, float, float]]:
    return [(index, index + 1, index + shift) for index in range(5)]


def test_the_original_runs_once_for_all_comparisons(tmp_path: Path) -> None:
    session = original()
    kept = KeptOutputs(session, FEEDS, tmp_path)
    assert session.runs == 0
    assert [compared(kept, shift) for shift in (2, 3, 4)] == [pairs(shift) for shift in (2, 3, 4)]
    assert session.runs == len(FEEDS)


def test_outputs_without_room_are_made_each_time(tmp_path: Path) -> None:
    session = original()
    kept = KeptOutputs(session, FEEDS, tmp_path, most=300)  # of 5 times some 100 bytes
    assert compared(kept, 2) == pairs(2)
    spent = session.runs
    assert len(FEEDS) < spent < 2 * len(FEEDS)  # what was tried before the room was known to be too small
    assert compared(kept, 3) == pairs(3)
    assert session.runs == spent + len(FEEDS)


@pytest.mark.parametrize("room", [0, 3])
def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    add, added = OutputFile.add, list[Any]()

    def full(file: OutputFile, outputs: Any) -> None:
        if len(added) >= room:
            raise OutputError("no room")
        added.append(outputs)
        add(file, outputs)

    monkeypatch.setattr(OutputFile, "add", full)
    kept = KeptOutputs(original(), FEEDS, tmp_path)
    assert compared(kept, 2) == compared(kept, 2) == pairs(2)
    missing = KeptOutputs(original(), FEEDS, tmp_path / "missing")
    assert compared(missing, 3) == pairs(3)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_the_file_goes_with_the_last_reference(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{number}").startswith(str(tmp_path))
            for number in os.listdir("/proc/self/fd")
        )

    kept = KeptOutputs(original(), FEEDS, tmp_path)
    compared(kept, 2)
    assert open_files() == 1
    del kept
    gc.collect()
    assert open_files() == 0


def test_errors_name_the_model_and_the_feed(tmp_path: Path) -> None:
    def fail(feed: Feed) -> dict[str, Any]:
        if feed["x"][0, 0] == 3:
            raise ModelError("no")
        return {"y": feed["x"]}

    with pytest.raises(ModelError, match="the original on feed 3: no"):
        list(KeptOutputs(FunctionSession(fail), FEEDS, tmp_path).pair_with(candidate(1)))
    with pytest.raises(ModelError, match="the candidate on feed 3: no"):
        list(KeptOutputs(original(), FEEDS, tmp_path).pair_with(FunctionSession(fail)))


def test_sessions_that_take_turns_are_opened_once_each(tmp_path: Path) -> None:
    opened: list[str] = []

    class Open(FunctionSession):
        overridable = ()
        nodes = None
        providers_used = ("CPUExecutionProvider",)

    def start(name: str) -> Any:
        opened.append(name)
        return Open(lambda feed: {"y": feed["x"] + 1})

    sessions = Sessions(one_at_a_time=True)
    kept = KeptOutputs(sessions.open(lambda: start("original")), FEEDS, tmp_path)
    for name in ("first", "second"):
        model = sessions.open(lambda name=name: start(name))  # type: ignore[misc]
        assert len(list(kept.pair_with(model))) == len(FEEDS)
    assert opened == ["original", "first", "original", "first", "second"]
