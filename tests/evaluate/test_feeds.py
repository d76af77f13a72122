from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import last_feeds, load_feeds, split_feeds
from lowrank_onnx.evaluate.values import InputSpec

INPUTS = (InputSpec("ids", "int64", ("n", "t")), InputSpec("x", "float32", ("n", 2)))


def feed(rows: int = 1, **changes: Any) -> dict[str, Any]:
    return {"ids": np.zeros((rows, 5), np.int64), "x": np.ones((rows, 2), np.float32), **changes}


def test_a_generator_is_read_once_and_can_be_iterated_again() -> None:
    made = []

    def generate() -> Iterator[dict[str, Any]]:
        for rows in (1, 4):
            made.append(rows)
            yield feed(rows)

    feeds = load_feeds(generate(), INPUTS)
    assert [len(entry["x"]) for entry in feeds] == [len(entry["x"]) for entry in feeds] == [1, 4]
    assert made == [1, 4]
    assert (len(feeds), feeds.samples, feeds.synthetic) == (2, 5, False)
    assert feeds.description == "2 feeds (5 samples) from Python"


def test_a_sequence_is_kept_not_copied() -> None:
    class Lazy(Sequence[dict[str, Any]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            if index >= 3:
                raise IndexError
            return feed(index + 1)

    assert [len(entry["x"]) for entry in load_feeds(Lazy(), INPUTS)] == [1, 2, 3]


def test_lists_of_numbers_become_arrays_of_the_inputs_type() -> None:
    (entry,) = load_feeds([{"ids": [[1, 2]], "x": [[1, 0.5]]}], INPUTS)
    assert entry["ids"].dtype == np.int64
    assert entry["x"].dtype == np.float32
    assert entry["x"].tolist() == [[1.0, 0.5]]


def test_extra_arrays_are_left_out() -> None:
    (entry,) = load_feeds([feed(labels=np.arange(1))], INPUTS)
    assert list(entry) == ["ids", "x"]


def test_feeds_pass_through() -> None:
    feeds = load_feeds([feed()], INPUTS)
    assert load_feeds(feeds, INPUTS) is feeds


def test_sequences_and_absent_optionals_pass_through() -> None:
    inputs = (InputSpec("list", "seq(tensor(float))", ()), InputSpec("maybe", "optional(tensor(float))", ()))
    items = [np.ones(2, np.float32)]
    (entry,) = load_feeds([{"list": items}], inputs)
    assert entry == {"list": items}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "feeds: the iterable gave no feed"),
        (iter([]), "feeds: the iterable gave no feed"),
        (feed(), "feeds: got one dict, expected an iterable of dicts: wrap it in a list"),
        (3, "feeds: got int, expected a path or an iterable of dicts"),
        ([feed(), np.ones(3)], "feed 1: expected a dict of input name -> array, got ndarray"),
        ([{"x": np.ones((1, 2), np.float32)}], "feed 0: no array for the model's input 'ids' (it holds x): add it"),
        ([{}], "feed 0: no array for the model's input 'ids' (it holds nothing): add it"),
        ([feed(x=np.ones(2, np.float32))], "feed 0: 'x' has shape (2), the model's input is (n, 2): give one array of"),
        ([feed(x=np.ones((1, 3), np.float32))], "feed 0: 'x' has shape (1, 3), the model's input is (n, 2): axis 1"),
        ([feed(x=np.ones((1, 2), np.int64))], "feed 0: 'x' holds int64, the model's input is float32"),
        ([feed(x=np.ones((0, 2), np.float32))], "feed 0: 'x' is empty (shape (0, 2)): give some values"),
        ([feed(x=[[1.0], [2.0, 3.0]])], "feed 0: 'x' can't be made an array of float32"),
        ([feed(ids=[["a"]])], "feed 0: 'ids' holds str"),
    ],
)
def test_what_is_no_feed_is_one_clear_line(source: Any, message: str) -> None:
    with pytest.raises(UsageError) as info:
        load_feeds(source, INPUTS)
    assert str(info.value).startswith(message)
    assert "\n" not in str(info.value)


def test_values_are_checked_when_their_turn_comes() -> None:
    feeds = iter(load_feeds([feed(), feed(x=np.array([[np.nan, 1]], np.float32))], INPUTS))
    next(feeds)
    with pytest.raises(UsageError, match="feed 1: 'x' holds 1 NaN or infinite values"):
        next(feeds)


def test_paths_that_hold_no_feeds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.npz: no such file or directory"):
        load_feeds(tmp_path / "missing.npz", INPUTS)
    with pytest.raises(UsageError, match=r"no \.npz files and no test_data_set_"):
        load_feeds(str(tmp_path), INPUTS)
    with pytest.raises(UsageError, match="batch size 0: expected at least 1"):
        load_feeds([feed()], INPUTS, batch_size=0)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    fixed=st.booleans(),
    width=st.integers(1, 4),
)
def test_cutting_loses_and_reorders_nothing(
    tmp_path_factory: pytest.TempPathFactory, samples: int, batch_size: int, fixed: bool, width: int
) -> None:
    path = tmp_path_factory.mktemp("feeds") / "feeds.npz"
    x = np.arange(samples * width, dtype=np.float32).reshape(samples, width)
    np.savez(path, x=x)
    spec = InputSpec("x", "float32", (batch_size if fixed else "n", width))
    if fixed and samples < batch_size:
        with pytest.raises(UsageError, match=f"the model's batch is fixed at {batch_size}"):
            load_feeds(path, [spec])
        return
    feeds = load_feeds(path, [spec], batch_size=batch_size)
    parts = [entry["x"] for entry in feeds]
    kept = samples - samples % batch_size if fixed else samples
    np.testing.assert_array_equal(np.concatenate(parts), x[:kept])
    assert all(len(part) == batch_size for part in parts[:-1])
    assert len(feeds) == len(parts)
    assert feeds.samples == kept


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_last_feeds_end_with_the_last_and_are_spread_evenly(count: int, wanted: int) -> None:
    feeds = load_feeds([feed(x=np.full((1, 2), index, np.float32)) for index in range(count)], INPUTS)
    last = last_feeds(feeds, wanted)
    numbers = [int(entry["x"][0, 0]) for entry in last]
    assert len(numbers) == len(last) == min(count, wanted)
    assert numbers[-1] == count - 1
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    assert len(steps) <= 1


def test_feeds_to_choose_by_are_none_of_those_to_judge_by() -> None:
    feeds = load_feeds([feed(x=np.full((1, 2), index, np.float32)) for index in range(16)], INPUTS)
    calibration, held_out = split_feeds(feeds)
    chosen = {float(entry["x"][0, 0]) for entry in last_feeds(calibration, 7)}
    assert len(chosen) == 7
    assert not chosen & {float(entry["x"][0, 0]) for entry in held_out}
