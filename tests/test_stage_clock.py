from __future__ import annotations

import time

import pytest

from lowrank_onnx.stage_clock import StageClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StageClock:
    """Each time that it looks at the time, a second has gone by."""
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return StageClock()


def test_time_adds_up_by_name(clock: StageClock) -> None:
    for name in ("first", "second", "first"):
        with clock.stage(name):
            pass
    assert clock.seconds == {"first": 2.0, "second": 1.0}


def test_a_stage_inside_of_another_counts_once(clock: StageClock) -> None:
    with clock.stage("outer"), clock.stage("inner"), clock.stage("inmost"):
        pass
    assert clock.seconds == {"outer": 2.0, "inner": 2.0, "inmost": 1.0}
    assert list(clock.seconds) == ["outer", "inner", "inmost"]


def test_a_stage_that_fails_is_counted(clock: StageClock) -> None:
    with pytest.raises(ValueError, match="no"), clock.stage("outer"), clock.stage("inner"):
        raise ValueError("no")
    with clock.stage("next"):
        pass
    assert clock.seconds == {"outer": 2.0, "inner": 1.0, "next": 1.0}
