from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import OutputError
from lowrank_onnx.latency.curve import LatencyCurve, read_curve, write_curve

CURVE = LatencyCurve(dense_ms=8.0, ranks=(16, 32, 64), rank_ms=(2.0, 3.0, 9.0), noise=0.05)
KEY = "ab12"


def test_it_is_linear_between_measured_ranks_and_exact_at_them() -> None:
    assert [CURVE.at(rank) for rank in (16, 24, 32, 48, 64)] == [2.0, 2.5, 3.0, 6.0, 9.0]


def test_below_the_smallest_rank_it_promises_no_more_than_was_seen() -> None:
    assert CURVE.at(1) == CURVE.at(15) == 2.0


def test_above_the_largest_rank_the_last_piece_goes_on() -> None:
    assert CURVE.at(96) == pytest.approx(15.0)


def test_above_the_largest_rank_it_never_falls() -> None:
    falling = LatencyCurve(8.0, (16, 32), (4.0, 2.0), 0.05)
    assert falling.at(64) == 2.0


def test_a_single_rank_goes_on_in_proportion() -> None:
    single = LatencyCurve(8.0, (16,), (2.0,), 0.05)
    assert [single.at(rank) for rank in (8, 16, 32)] == [2.0, 2.0, 4.0]


def test_a_fall_within_the_noise_is_pooled() -> None:
    curve = LatencyCurve(8.0, (8, 16, 24, 32), (2.0, 3.06, 2.94, 5.0), 0.05)
    assert curve.at(16) == curve.at(20) == curve.at(24) == pytest.approx(3.0)
    assert curve.at(8) == 2.0


def test_pooling_goes_back_as_far_as_it_must() -> None:
    curve = LatencyCurve(8.0, (8, 16, 24), (3.0, 3.03, 2.97), 0.05)
    assert [curve.at(rank) for rank in (8, 16, 24)] == pytest.approx([3.0, 3.0, 3.0])


def test_a_fall_beyond_the_noise_is_kept() -> None:
    curve = LatencyCurve(8.0, (8, 16, 24), (2.0, 4.0, 3.0), 0.05)
    assert [curve.at(rank) for rank in (8, 16, 24)] == [2.0, 4.0, 3.0]


def test_faster_wants_more_than_the_noise() -> None:
    curve = LatencyCurve(10.0, (16, 32, 48), (9.4, 9.6, 11.0), 0.05)
    assert [curve.faster(rank) for rank in (16, 32, 48)] == [True, False, False]


def test_nothing_is_faster_where_noise_is_all_there_is() -> None:
    assert not LatencyCurve(10.0, (16,), (0.001,), 1.0).faster(16)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    times=st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
    noise=st.floats(0.0, 2.0),
    rank=st.integers(1, 400),
)
def test_any_rank_lies_within_what_was_measured(steps: list[int], times: list[float], noise: float, rank: int) -> None:
    ranks = tuple(sum(steps[: index + 1]) for index in range(len(steps)))
    measured = tuple(times[: len(ranks)])
    found = LatencyCurve(1.0, ranks, measured, noise).at(rank)
    assert found >= min(measured) * (1 - 1e-12)
    assert rank > ranks[-1] or found <= max(measured) * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5))
def test_it_never_falls_where_every_fall_is_noise(times: list[float]) -> None:
    curve = LatencyCurve(1.0, (8, 16, 24, 32, 40), tuple(times), noise=1e7)
    found = [curve.at(rank) for rank in range(1, 60)]
    assert all(low <= high * (1 + 1e-12) for low, high in itertools.pairwise(found))


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 0: expected at least 1"):
        CURVE.at(0)


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": ()},
        {"ranks": (16, 16, 64)},
        {"ranks": (0, 16, 64)},
        {"ranks": (16, 32)},
        {"rank_ms": (2.0, 3.0)},
        {"rank_ms": (2.0, float("nan"), 9.0)},
        {"rank_ms": (2.0, float("inf"), 9.0)},
        {"dense_ms": 0.0},
        {"dense_ms": -1.0},
        {"noise": -0.1},
        {"noise": float("nan")},
        {"noise": float("inf")},
    ],
)
def test_a_malformed_curve_is_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"dense_ms": 8.0, "ranks": (16, 32, 64), "rank_ms": (2.0, 3.0, 9.0), "noise": 0.05}
    LatencyCurve(**fields)
    with pytest.raises(ValueError, match="expected"):
        LatencyCurve(**{**fields, **change})


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    curve = LatencyCurve(1 / 3, (16, 32), (0.1, 2 / 7), 0.0212345)
    write_curve(path, KEY, curve, note="Conv")
    assert read_curve(path, KEY) == curve
    assert [file.name for file in tmp_path.iterdir()] == ["entry.json"]


def test_another_key_s_entry_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    write_curve(path, KEY, CURVE, note="")
    assert read_curve(path, KEY) == CURVE
    assert read_curve(path, "cd34") is None


def test_no_entry_is_none(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "entry.json", KEY) is None
    assert read_curve(tmp_path, KEY) is None


GOOD: dict[str, Any] = {"key": KEY, "dense_ms": 8, "ranks": [16, 32], "rank_ms": [2.0, 3], "noise": 0.05}


def test_whole_numbers_are_times_too(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    path.write_text(json.dumps(GOOD))
    assert read_curve(path, KEY) == LatencyCurve(8.0, (16, 32), (2.0, 3.0), 0.05)


CHANGES: list[dict[str, Any]] = [
    {"key": None},
    {"dense_ms": "8"},
    {"dense_ms": True},
    {"dense_ms": float("nan")},
    {"dense_ms": float("inf")},
    {"dense_ms": 10**400},
    {"dense_ms": 0},
    {"ranks": [16, 16]},
    {"ranks": [16.0, 32.0]},
    {"ranks": [True, 32]},
    {"ranks": "16"},
    {"ranks": {"16": 1, "32": 2}},
    {"ranks": []},
    {"rank_ms": [2.0]},
    {"rank_ms": [2.0, -3.0]},
    {"rank_ms": [2.0, None]},
    {"noise": -1},
]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b"[]",
        b"3",
        json.dumps(GOOD).encode()[:-5],
        json.dumps(GOOD).encode() + b" " * 70_000,
        *(json.dumps({**GOOD, **change}).encode() for change in CHANGES),
        *(json.dumps({k: v for k, v in GOOD.items() if k != name}).encode() for name in GOOD),
    ],
)
def test_a_damaged_entry_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "entry.json"
    path.write_bytes(content)
    assert read_curve(path, KEY) is None


def test_a_failed_write_leaves_the_old_entry_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry.json"
    write_curve(path, KEY, CURVE, note="")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="No space left on device; give a directory that can be written"):
        write_curve(path, KEY, LatencyCurve(1.0, (1,), (1.0,), 0.0), note="")
    assert read_curve(path, KEY) == CURVE
    assert [file.name for file in tmp_path.iterdir()] == ["entry.json"]


def test_a_directory_that_was_deleted_meanwhile_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "latency" / "a.json"
    write_curve(path, KEY, CURVE, note="")
    assert read_curve(path, KEY) == CURVE
