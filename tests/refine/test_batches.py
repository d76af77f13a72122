from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.evaluate import Session, load_feeds, open_session
from lowrank_onnx.evaluate.feeds import is_held_out
from lowrank_onnx.refine import refine_factors
from lowrank_onnx.refine.batches import MOST_BYTES, Batches, batch_feeds
from lowrank_onnx.refine.pieces import Track
from lowrank_onnx.types import Array
from tests.passes.models import make_model, value
from tests.refine.builders import OPTIONS, error_on, inputs, layers, workshop

RowFeeds = Sequence[Mapping[str, Array]]


def session_of(model: onnx.ModelProto) -> Session:
    return open_session(model.SerializeToString())


def doubling(first: int | str = "n", nodes: Sequence[onnx.NodeProto] | None = None) -> Session:
    """y = 2 x, or what the nodes say."""
    made = nodes or [h.make_node("Mul", ["x", "two"], ["y"])]
    weights: dict[str, Array] = {"two": np.array(2.0, np.float32), "size": np.array([4, -1], np.int64)}
    return session_of(make_model(made, [value("x", [first, "m"])], [value("y", [None, None])], weights))


def rows(lengths: Sequence[tuple[int, int]]) -> RowFeeds:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for shape in lengths]


def batched(session: Session, feeds: RowFeeds, validates: Callable[[int], bool] = is_held_out) -> Batches:
    return batch_feeds(load_feeds(list(feeds), session.inputs), validates, session)


SESSION = doubling()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 40]), st.sampled_from([3, 5])), min_size=1, max_size=60))
def test_every_feed_is_in_one_batch_of_its_kind(lengths: list[tuple[int, int]]) -> None:
    feeds = rows(lengths)
    found = batched(SESSION, feeds)
    assert sorted(member for batch in found.batches for member in batch.members) == list(range(len(feeds)))
    loaded = list(found.load())
    assert len(loaded) == len(found.batches)
    for batch, feed in zip(found.batches, loaded, strict=True):
        assert {is_held_out(member) for member in batch.members} == {batch.validates}
        np.testing.assert_array_equal(feed["x"], np.concatenate([feeds[member]["x"] for member in batch.members]))
        assert len(feed["x"]) <= 32 or len(batch.members) == 1
    for feed, again in zip(loaded, found.load(), strict=True):
        np.testing.assert_array_equal(feed["x"], again["x"])


def test_batches_are_as_large_as_what_validates() -> None:
    found = batched(SESSION, rows([(1, 3)] * 24))
    assert [(len(batch.members), batch.validates) for batch in found.batches] == [
        (6, False),
        (6, False),
        (6, False),
        (6, True),
    ]


def test_large_feeds_stay_apart() -> None:
    wide = MOST_BYTES // 4 // 2 + 1
    assert all(len(batch.members) == 1 for batch in batched(SESSION, rows([(1, wide)] * 8)).batches)
    assert len(batched(SESSION, rows([(1, wide - 1)] * 8)).batches) < 8


@pytest.mark.parametrize(
    "session",
    [
        doubling(first=1),
        doubling(nodes=[h.make_node("Softmax", ["x"], ["y"], axis=0)]),
        doubling(nodes=[h.make_node("Reshape", ["x", "size"], ["y"])]),
        doubling(nodes=[h.make_node("ReduceMax", ["x"], ["y"], axes=[0])]),
    ],
    ids=["fixed batch", "samples mix", "size fixed inside", "no row for each sample"],
)
def test_feeds_of_a_model_that_does_not_treat_samples_apart_stay_apart(session: Session) -> None:
    feeds = rows([(1, 4)] * 8)
    assert [batch.members for batch in batched(session, feeds).batches] == [(number,) for number in range(8)]


def test_feeds_of_one_sample_are_run_together_and_refined_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    singles = [{"x": feed["x"][row : row + 1]} for feed in inputs(16) for row in range(20)]
    unseen = inputs(8, seed=2)
    runs, real = [0], Track._given

    def counted(track: Track, *names: Any) -> Iterator[Any]:
        for feed in real(track, *names):
            runs[0] += 1
            yield feed

    monkeypatch.setattr(Track, "_given", counted)
    shop, choices = workshop(layers(4), singles, tmp_path, 6)
    refined = refine_factors(shop, choices, OPTIONS)
    assert (refined.report.feeds, refined.report.held_out, refined.report.note) == (240, 80, "")
    assert runs[0] <= 5 * 9
    assert error_on(shop, choices, refined.spool, unseen) < 0.95 * error_on(shop, choices, shop.spool, unseen)
