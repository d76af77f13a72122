from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.cache.entry_file import LARGEST_HEADER, MAGIC, Entry, read_entry, write_entry
from lowrank_onnx.types import Array

KEY = "ab" * 32
SHAPES = {"matrix": (2, 3, 4), "empty": (0, 5), "scalar": ()}


def example() -> Entry:
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {
        "matrix": generator.standard_normal((4, 3, 2)).T.astype(np.float32),
        "empty": np.zeros((0, 5)),
        "scalar": np.array(1.5),
    }
    return Entry({"error": 0.1, "infinite": float("inf"), "name": "w\udc80", "ranks": [1, 2]}, arrays)


def content(entry: Entry) -> bytes:
    stream = io.BytesIO()
    write_entry(stream, "factors", KEY, entry)
    return stream.getvalue()


def read(path: Path, shapes: dict[str, tuple[int, ...]] = SHAPES, kind: str = "factors", key: str = KEY) -> Entry:
    with path.open("rb") as stream:
        return read_entry(stream, kind, key, shapes)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("entry") / "one.entry"


def test_what_is_written_is_read_to_the_bit(path: Path) -> None:
    entry = example()
    path.write_bytes(content(entry))
    found = read(path)
    assert found.meta == entry.meta
    assert found.arrays.keys() == entry.arrays.keys()
    for name, array in entry.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)
    assert content(entry) == content(example())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_passes(path: Path, data: st.DataObject) -> None:
    spoilt = bytearray(content(example()))
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(spoilt)
    with pytest.raises((ValueError, KeyError, TypeError)):
        read(path)


def test_no_truncation_and_no_addition_passes(path: Path) -> None:
    whole = content(example())
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"begin|cut off|size|checksum|Expecting|Unterminated"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="its size isn't that of its arrays"):
        read(path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"kind": "moments"}, "it is another result's"),
        ({"key": "cd" * 32}, "it is another result's"),
        ({"shapes": {**SHAPES, "matrix": (2, 4, 3)}}, "its arrays aren't those expected"),
        ({"shapes": {**SHAPES, "more": (1,)}}, "its arrays aren't those expected"),
        ({"shapes": {"matrix": (2, 3, 4)}}, "its arrays aren't those expected"),
    ],
)
def test_an_entry_that_is_not_the_one_expected_is_refused(path: Path, arguments: Any, problem: str) -> None:
    path.write_bytes(content(example()))
    with pytest.raises(ValueError, match=problem):
        read(path, **arguments)


def forged(header: object, arrays: bytes) -> bytes:
    """A file with a right checksum, as whoever means harm would write it."""
    text = json.dumps(header).encode()
    body = MAGIC + len(text).to_bytes(8, "little") + text + arrays
    return body + hashlib.blake2b(body, digest_size=32).digest()


def header(**changes: object) -> dict[str, object]:
    return {"kind": "factors", "key": KEY, "meta": {}, "arrays": [["a", "<f4", [2]]], **changes}


def test_the_forgery_is_good_enough_to_be_read_when_it_is_right(path: Path) -> None:
    path.write_bytes(forged(header(), bytes(8)))
    assert read(path, {"a": (2,)}).arrays["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"arrays": [["a", "|O", [2]]]}, "its arrays aren't of a dtype expected"),
        ({"arrays": [["a", "<c8", [1]]]}, "its arrays aren't those expected"),
        ({"arrays": [["a", "<f8", [2]]]}, "its size isn't that of its arrays"),
        ({"arrays": [["a", "<f4", [2**40]]]}, "its arrays aren't those expected"),
        ({"arrays": [["a", "<f4", [2]], ["a", "<f4", [2]]]}, "its arrays aren't those expected"),
        ({"arrays": []}, "its arrays aren't those expected"),
        ({"meta": [1]}, "it says nothing of its contents"),
    ],
)
def test_a_header_with_a_right_checksum_is_not_believed(path: Path, changes: dict[str, object], problem: str) -> None:
    path.write_bytes(forged(header(**changes), bytes(8)))
    with pytest.raises(ValueError, match=problem):
        read(path, {"a": (2,)})


@pytest.mark.parametrize("foreign", [[], 1, None, "text", {}, {"kind": "factors"}])
def test_a_foreign_header_is_refused(path: Path, foreign: object) -> None:
    path.write_bytes(forged(foreign, b""))
    with pytest.raises((ValueError, KeyError, TypeError)):
        read(path, {})


def test_a_length_beyond_the_file_allocates_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("allocated before the sizes were checked")

    monkeypatch.setattr(np, "empty", refuse)
    for length in (LARGEST_HEADER + 1, 2**60, 2**64 - 1):
        path.write_bytes(MAGIC + length.to_bytes(8, "little") + bytes(100))
        with pytest.raises(ValueError, match="it is cut off"):
            read(path)
    path.write_bytes(forged(header(arrays=[["a", "<f4", [2**40]]]), bytes(8)))
    with pytest.raises(ValueError, match="its size isn't that of its arrays"):
        read(path, {"a": (2**40,)})


@pytest.mark.parametrize("write", [lambda: Entry({}, {"a": np.zeros(2, np.int64)}), lambda: Entry({"a": {1}}, {})])
def test_what_an_entry_can_not_hold_is_not_written(write: Callable[[], Entry]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"can't hold <i8|not JSON serializable"):
        content(write())
