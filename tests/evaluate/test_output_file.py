from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.errors import OutputError
from lowrank_onnx.evaluate.output_file import OutputFile

VALUES: list[Any] = [
    {"y": np.arange(12, dtype=np.float32).reshape(3, 4).T, "n": np.array(7, np.int64), "e": np.zeros((0, 3), np.bool_)},
    {"y": np.array([[1.5, np.nan, -np.inf]]).astype(ml_dtypes.bfloat16)},
    {"y": np.array([3.0, 448.0]).astype(ml_dtypes.float8_e4m3fn), "c": np.array([1 + 2j])},
    {"text": np.array([["a\0", "ü\n"], ["", "\ud800"]], dtype=object)},
    {"maps": [{1: 0.1, -2: float("nan")}, {"a": 1e-300}], "none": None, "flag": True},
    [{"y": np.float32(1.25)}, [np.ones(2, np.float16), [None]]],
]


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_same(left, right)
    elif isinstance(wanted, np.ndarray | np.generic):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        if wanted.dtype.kind == "O":
            assert found.tolist() == wanted.tolist()
        else:
            assert found.tobytes() == wanted.tobytes()
    else:
        assert type(found) is type(wanted)
        assert repr(found) == repr(wanted)


def test_what_was_added_comes_back_bit_by_bit_and_in_order(tmp_path: Path) -> None:
    with OutputFile(tmp_path) as kept:
        for value in VALUES:
            kept.add(value)
        for _ in range(2):
            found = list(kept)
            assert len(found) == len(VALUES)
            for left, right in zip(found, VALUES, strict=True):
                assert_same(left, right)


def test_it_counts_what_it_takes(tmp_path: Path) -> None:
    with OutputFile(tmp_path) as kept:
        assert kept.nbytes == 0
        kept.add({"y": np.zeros(1000)})
        assert 8000 < kept.nbytes < 8200


@pytest.mark.skipif(sys.platform == "win32", reason="a file has a name there while it is open")
def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    with OutputFile(tmp_path) as kept:
        kept.add({"y": np.zeros(100_000)})
        assert os.listdir(tmp_path) == []


def test_a_place_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't be kept there .*; give fewer feeds, or --two-sessions"):
        OutputFile(tmp_path / "missing")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")

    def full(**options: Path) -> IO[bytes]:
        return open("/dev/full", "w+b")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left on device"), OutputFile(tmp_path) as kept:
        kept.add({"y": np.zeros(10)})


def test_several_threads_can_go_through_it_at_once(tmp_path: Path) -> None:
    values = [np.full(20_000, number, np.float32) for number in range(30)]
    with OutputFile(tmp_path) as kept:
        for value in values:
            kept.add({"y": value})
        with ThreadPoolExecutor(4) as executor:
            for found in executor.map(lambda _: [value["y"] for value in kept], range(4)):
                for number, (one, expected) in enumerate(zip(found, values, strict=True)):
                    np.testing.assert_array_equal(one, expected, str(number))
