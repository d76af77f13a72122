from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx import cache as cache_module
from lowrank_onnx.cache import NO_CACHE, STALE_SECONDS, Cache, Codec, open_cache, remember
from lowrank_onnx.cache.entry_file import Entry
from lowrank_onnx.errors import OutputError
from lowrank_onnx.types import Array


def _decode(entry: Entry) -> Array:
    if entry.meta["kind of array"] != "test":
        raise ValueError("another kind of array")
    return entry.arrays["a"]


def _encode(array: Array) -> Entry:
    return Entry({"kind of array": "test"}, {"a": array})


CODEC: Codec[Array] = Codec({"a": (3,)}, _encode, _decode)
VALUES = np.array([1.0, 2.0, 3.0])


def opened(directory: Path) -> Cache:
    return open_cache(directory, lambda: ["version 1"])


def refuse() -> Array:
    raise AssertionError("computed although it was kept")


def entries(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def test_a_result_is_computed_once_and_found_by_a_later_run(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    assert remember(opened(directory).slot("a", lambda: [1]), CODEC, lambda: VALUES) is VALUES
    later = opened(directory)
    np.testing.assert_array_equal(remember(later.slot("a", lambda: [1]), CODEC, refuse), VALUES, strict=True)
    assert later.notes == ()
    [path] = entries(directory)
    assert path.parent.name == "a"


def test_without_a_cache_nothing_is_asked_kept_or_said(tmp_path: Path) -> None:
    def facts() -> list[object]:
        raise AssertionError("facts were asked for")

    assert open_cache(None, facts) is NO_CACHE
    cache = NO_CACHE.scoped(facts)
    slot = cache.slot("a", facts)
    assert remember(slot, CODEC, lambda: VALUES) is VALUES
    assert slot.get(CODEC) is None
    assert (cache.notes, cache.directory("latency")) == ((), None)
    assert entries(tmp_path) == []


def test_environment_scope_kind_and_facts_are_all_part_of_the_place(tmp_path: Path) -> None:
    def paths(version: str, scope: str | None, kind: str, fact: str) -> None:
        cache = open_cache(tmp_path, lambda: [version])
        inner = cache if scope is None else cache.scoped(lambda: [scope])
        remember(inner.slot(kind, lambda: [fact]), CODEC, lambda: VALUES)

    places: list[tuple[str, str | None, str, str]] = [
        ("1", "s", "a", "x"),
        ("2", "s", "a", "x"),
        ("1", "t", "a", "x"),
        ("1", "s", "b", "x"),
    ]
    places += [("1", "s", "a", "y"), ("1", None, "a", "x"), ("s", None, "a", "x"), ("", "1", "a", "sx")]
    for count, place in enumerate(places, start=1):
        paths(*place)
        assert len(entries(tmp_path)) == count
        paths(*place)
        assert len(entries(tmp_path)) == count


def test_the_facts_of_a_scope_are_asked_for_once_and_late(tmp_path: Path) -> None:
    asked: list[str] = []

    def facts(name: str) -> Iterator[object]:
        asked.append(name)
        yield name

    outer = open_cache(tmp_path, lambda: facts("environment"))
    inner = outer.scoped(lambda: facts("model"))
    assert asked == []
    for index in range(3):
        inner.slot("a", lambda: [index])  # noqa: B023 - used at once
    assert sorted(asked) == ["environment", "model"]


def test_feeds_are_digested_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Feed(np.ndarray):
        def __del__(self) -> None:
            alive.remove(id(self))

    def feeds() -> Iterator[object]:
        for _ in range(5):
            feed = np.zeros(10).view(Feed)
            alive.append(id(feed))
            yield feed
            del feed
            assert len(alive) <= 1

    opened(tmp_path).slot("a", feeds)
    opened(tmp_path).scoped(feeds).slot("a", list)
    assert alive == []


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(200))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (spoil_cut, "its size isn't that of its arrays"),
        (spoil_bit, "its checksum is wrong"),
        (spoil_empty, "it doesn't begin as an entry does"),
        (spoil_foreign, "it doesn't begin as an entry does"),
    ],
)
def test_a_damaged_entry_is_noted_computed_anew_and_replaced(
    tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    remember(opened(tmp_path).slot("a", lambda: [1]), CODEC, lambda: VALUES)
    [path] = entries(tmp_path)
    whole = path.read_bytes()
    spoil(path)
    cache = opened(tmp_path)
    assert remember(cache.slot("a", lambda: [1]), CODEC, lambda: VALUES) is VALUES
    assert cache.notes == (f"cache entry {path} is damaged or foreign ({problem}): ignored, and computed anew",)
    assert path.read_bytes() == whole


def test_an_entry_under_another_name_is_not_taken_for_that(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    remember(cache.slot("a", lambda: [1]), CODEC, lambda: VALUES)
    [first] = entries(tmp_path)
    remember(cache.slot("a", lambda: [2]), CODEC, lambda: VALUES + 1)
    [second] = [path for path in entries(tmp_path) if path != first]
    second.write_bytes(first.read_bytes())
    found = remember(cache.slot("a", lambda: [2]), CODEC, lambda: VALUES + 1)
    np.testing.assert_array_equal(found, VALUES + 1)
    assert [note.partition("(")[2] for note in cache.notes] == ["it is another result's): ignored, and computed anew"]


def test_what_the_codec_refuses_is_noted_too(tmp_path: Path) -> None:
    other: Codec[Array] = Codec(CODEC.shapes, lambda array: Entry({"kind of array": "other"}, {"a": array}), _decode)
    remember(opened(tmp_path).slot("a", lambda: [1]), other, lambda: VALUES)
    cache = opened(tmp_path)
    assert cache.slot("a", lambda: [1]).get(CODEC) is None
    assert "(another kind of array)" in cache.notes[0]


def test_a_result_that_is_not_worth_keeping_is_not_kept(tmp_path: Path) -> None:
    never: Codec[Array] = Codec(CODEC.shapes, lambda array: None, _decode)
    assert remember(opened(tmp_path).slot("a", lambda: [1]), never, lambda: VALUES) is VALUES
    assert entries(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_a_directory_in_the_place_of_an_entry_does_no_harm(tmp_path: Path) -> None:
    remember(opened(tmp_path).slot("a", lambda: [1]), CODEC, lambda: VALUES)
    [path] = entries(tmp_path)
    path.unlink()
    os.mkfifo(path)
    remember(opened(tmp_path).slot("a", lambda: [1]), CODEC, lambda: VALUES)
    assert path.is_file()
    path.unlink()
    path.mkdir()
    cache = opened(tmp_path)
    assert remember(cache.slot("a", lambda: [1]), CODEC, lambda: VALUES) is VALUES
    assert cache.notes == (f"cache {path.parent}: Is a directory; results were not kept",)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_stops_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(stream: object, *rest: object) -> None:
        raise error

    monkeypatch.setattr(cache_module, "write_entry", stop)
    cache = opened(tmp_path)
    if isinstance(error, OSError):
        for index in range(2):  # the same sentence is said once
            assert remember(cache.slot("a", lambda: [index]), CODEC, lambda: VALUES) is VALUES  # noqa: B023
        assert cache.notes == (f"cache {tmp_path / 'a'}: No space left on device; results were not kept",)
    else:
        with pytest.raises(KeyboardInterrupt):
            remember(cache.slot("a", lambda: [1]), CODEC, lambda: VALUES)
    assert entries(tmp_path) == []


def test_the_directory_can_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    slot = cache.slot("a", lambda: [1])
    assert remember(slot, CODEC, lambda: VALUES) is VALUES
    assert slot.get(CODEC) is not None
    assert cache.notes == ()


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    remember(opened(tmp_path).slot("a", lambda: [1]), CODEC, lambda: VALUES)
    [kept] = entries(tmp_path)
    names = {"old": f".{'0' * 64}.x.tmp", "young": f".{'1' * 64}.x.tmp", "foreign": ".mine.tmp"}
    for name in names.values():
        (tmp_path / "a" / name).write_bytes(b"half an entry")
    past = time.time() - STALE_SECONDS - 60
    for name in (names["old"], names["foreign"], kept.name):
        os.utime(tmp_path / "a" / name, (past, past))
    opened(tmp_path)
    assert {path.name for path in entries(tmp_path)} == {kept.name, names["young"], names["foreign"]}


def test_runs_that_write_the_same_entry_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    large: Codec[Array] = Codec({"a": (200_000,)}, CODEC.encode, _decode)
    values = np.arange(200_000.0)
    found: list[bool] = []

    def work() -> None:
        cache = opened(tmp_path)
        for _ in range(5):
            slot = cache.slot("a", lambda: [1])
            slot.put(large, values)
            result = slot.get(large)
            found.append(result is not None and np.array_equal(result, values) and cache.notes == ())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20
    assert len(entries(tmp_path)) == 1


def test_a_place_that_can_not_be_used_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"^cache '.*file': is no directory; give a directory that can be written$"):
        opened(tmp_path / "file")
    with pytest.raises(OutputError, match=r"^cache '.*inside': Not a directory; give a directory"):
        opened(tmp_path / "file" / "inside")
    with pytest.raises(OutputError, match=r"^cache 'a\\x00b': embedded null byte; give a directory"):
        opened(Path("a\0b"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="can't be written to; give a directory"):
        opened(tmp_path)


def test_a_place_for_others(tmp_path: Path) -> None:
    assert opened(tmp_path).directory("latency") == tmp_path / "latency"
    assert opened(tmp_path).scoped(lambda: [1]).directory("latency") == tmp_path / "latency"
