from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.errors import OutputError
from lowrank_onnx.feed_files.npz_writer import FeedArray, evenly_spread, write_feeds


def feed_array(count: int = 3, promised: int | None = None) -> FeedArray:
    rows = (np.full((2, 2), number, np.float32) for number in range(count))
    return FeedArray("x", (count if promised is None else promised, 2, 2), np.dtype(np.float32), rows)


def test_numpy_reads_what_was_written(tmp_path: Path) -> None:
    tokens = FeedArray("t", (2, 3), np.dtype(np.int64), np.arange(6).reshape(2, 3))
    write_feeds(tmp_path / "f.npz", (feed_array(), tokens))
    with np.load(tmp_path / "f.npz") as archive:
        assert archive["x"].tolist() == [[[n, n], [n, n]] for n in (0.0, 1.0, 2.0)]
        assert archive["t"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (archive["x"].dtype, archive["t"].dtype) == (np.float32, np.int64)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_feeds(tmp_path / name, (feed_array(),))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_error_in_between_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(b"old")
    with pytest.raises(ValueError, match="x: 3 rows, promised were 4"):
        write_feeds(tmp_path / "f.npz", (feed_array(promised=4),))
    assert (tmp_path / "f.npz").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f.npz"]


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    wrong = FeedArray("x", (1, 3), np.dtype(np.float32), [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match=r"row 0 is float32 \(2,\), promised was \(3,\)"):
        write_feeds(tmp_path / "f.npz", (wrong,))


def test_what_does_not_fit_on_the_disk_is_refused_before_a_row_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    array = feed_array()
    with pytest.raises(OutputError, match=r"needs 4\.8e-08 GB, 1e-08 GB are free: take fewer --samples"):
        write_feeds(tmp_path / "f.npz", (array,))
    assert next(iter(array.rows)).sum() == 0  # still the first


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        write_feeds(tmp_path / "nowhere" / "f.npz", (feed_array(),))


@given(count=st.integers(1, 50), samples=st.integers(1, 60))
def test_samples_are_spread_evenly(count: int, samples: int) -> None:
    chosen = evenly_spread(count, samples)
    assert len(chosen) == min(count, samples)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < count
    steps = {b - a for a, b in pairwise(chosen)}
    assert not steps or max(steps) - min(steps) <= 1
