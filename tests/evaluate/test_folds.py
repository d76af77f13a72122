from __future__ import annotations

import numpy as np

from lowrank_onnx.evaluate.feeds import load_feeds
from lowrank_onnx.evaluate.folds import fold_samples, single_samples
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Array

OPEN = (InputSpec("x", "float32", ("batch", 3)), InputSpec("mask", "int64", (None, 2)))
FIXED = (InputSpec("x", "float32", (4, 3)),)


def feed(samples: int, start: int = 0, masks: int | None = None) -> dict[str, Array]:
    count = samples if masks is None else masks
    first = np.arange(start, start + samples, dtype=np.float32)
    return {"x": np.repeat(first[:, None], 3, axis=1), "mask": np.ones((count, 2), np.int64)}


def samples_of(parts: tuple[object, ...]) -> list[list[int]]:
    return [[int(row[0]) for one in part for row in one["x"]] for part in parts]  # type: ignore[attr-defined]


def test_the_samples_of_one_feed_are_parted() -> None:
    parts = fold_samples(load_feeds([feed(7)], OPEN), OPEN, 3)
    assert samples_of(parts) == [[0, 3, 6], [1, 4], [2, 5]]
    assert [part.samples for part in parts] == [3, 2, 2]
    assert all(one["mask"].shape == (1, 2) for part in parts for one in part)


def test_where_there_are_feeds_enough_they_are_not_cut() -> None:
    feeds = load_feeds([feed(2, 2 * index) for index in range(4)], OPEN)
    assert samples_of(fold_samples(feeds, OPEN, 2)) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_what_can_not_be_cut_stays_whole() -> None:
    assert fold_samples(load_feeds([{"x": np.zeros((4, 3), np.float32)}], FIXED), FIXED, 2) == ()
    assert fold_samples(load_feeds([feed(4, masks=3)], OPEN), OPEN, 2) == ()
    assert fold_samples(load_feeds([feed(2)], OPEN), OPEN, 3) == ()


def test_single_samples_are_from_as_many_feeds_as_there_are() -> None:
    feeds = load_feeds([feed(8, 10 * index) for index in range(3)], OPEN)
    assert samples_of((single_samples(feeds, OPEN, 2),)) == [[0, 10]]
    assert samples_of((single_samples(feeds, OPEN, 6),)) == [[0, 4, 10, 14, 20, 24]]
    assert samples_of((single_samples(feeds, OPEN, 4),)) == [[0, 4, 10, 14]]
    assert samples_of((single_samples(feeds, OPEN, 99),)) == [[*range(8), *range(10, 18), *range(20, 28)]]
    assert all(one["mask"].shape == (1, 2) for one in single_samples(feeds, OPEN, 5))


def test_of_feeds_that_can_not_be_cut_as_few_are_taken_as_hold_the_samples() -> None:
    feeds = load_feeds([{"x": np.full((4, 3), index, np.float32)} for index in range(5)], FIXED)
    assert [one["x"].shape for one in single_samples(feeds, FIXED, 4)] == [(4, 3)]
    assert [int(one["x"][0, 0]) for one in single_samples(feeds, FIXED, 6)] == [0, 1]
