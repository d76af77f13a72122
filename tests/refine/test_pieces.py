from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.evaluate import open_session
from lowrank_onnx.moments.feed_pass import add_value_outputs
from lowrank_onnx.passes.dataflow import Precedence, read_dataflow
from lowrank_onnx.refine.activations import Activations
from lowrank_onnx.refine.pieces import Bounds, Course, PiecesError, Track, Waiting
from lowrank_onnx.types import Array
from tests.passes.models import make_model, run_ort, value, weight
from tests.refine.builders import WIDTH, inputs, layers

FEEDS = inputs(3)


def track(model: onnx.ModelProto, waiting: Waiting, at_once: int = 1) -> Track:
    flow = read_dataflow(model)
    course = Course(flow, Precedence(flow).order(), lambda: iter(FEEDS), waiting, at_once)
    return Track(course, "original", flow, lambda piece: open_session(piece.SerializeToString()))


def expected(model: onnx.ModelProto, name: str) -> list[Array]:
    wanted, _ = add_value_outputs(model, {name: "float32"})
    return [run_ort(wanted, dict(feed))[0] for feed in FEEDS]


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("bounds", [Bounds(), Bounds(memory=0)], ids=["memory", "disk"])
def test_values_are_those_of_the_whole_model(tmp_path: Path, bounds: Bounds, at_once: int) -> None:
    model = layers(4, residual=True)
    waiting = Waiting(tmp_path, bounds, len(FEEDS))
    original = track(model, waiting, at_once)
    for cut, name in ((1, "m0"), (5, "a1"), (7, "r1"), (11, "m3")):
        original.run_to(cut)
        assert waiting.feeds == (0, 1, 2)
        for number, wanted in enumerate(expected(model, name)):
            np.testing.assert_allclose(original.value(number, name), wanted, rtol=1e-4, atol=1e-4)
    waiting.close()
    assert not list(tmp_path.glob("activation.*"))


def test_what_is_asked_is_given_feed_by_feed_and_not_kept(tmp_path: Path) -> None:
    model = layers(4)
    waiting = Waiting(tmp_path, Bounds(), len(FEEDS))
    original = track(model, waiting)
    found: dict[int, Mapping[str, Array]] = {}
    original.run_to(3)
    # The first has waited, the others are made.
    original.run_to(9, ("r0", "m1", "a2"), lambda feed, values: partial(found.__setitem__, feed, values))
    for name in ("r0", "m1", "a2"):
        for number, wanted in enumerate(expected(model, name)):
            np.testing.assert_allclose(found[number][name], wanted, rtol=1e-4, atol=1e-4)
            with pytest.raises(KeyError):
                original.value(number, name)


def test_a_piece_without_nodes_runs_nothing(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, Bounds(), len(FEEDS))
    original = track(layers(2), waiting)
    original.run_to(0)
    original.run_to(0)
    assert original.value(1, "x") is FEEDS[1]["x"]


def test_a_sequence_cannot_wait(tmp_path: Path) -> None:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("SplitToSequence", ["a"], ["s"], axis=1),
        h.make_node("ConcatFromSequence", ["s"], ["b"], axis=1),
        h.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    weights = {"w": weight(WIDTH, WIDTH), "w2": weight(WIDTH, WIDTH, seed=1)}
    model = make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)
    with pytest.raises(PiecesError, match="value 's' is no tensor, and can't be kept between the layers"):
        track(model, Waiting(tmp_path, Bounds(), len(FEEDS))).run_to(2)


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_last_feeds_are_given_up_where_there_is_no_room(tmp_path: Path, at_once: int) -> None:
    size = FEEDS[0]["x"].nbytes
    waiting = Waiting(tmp_path, Bounds(memory=2 * size, disk=0), len(FEEDS))
    original = track(layers(4), waiting, at_once)
    original.run_to(3)
    assert waiting.feeds == (0, 1)
    original.run_to(6)
    np.testing.assert_allclose(original.value(1, "r1"), expected(layers(4), "r1")[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(PiecesError, match="value 'late' leaves no room for those of 2 feeds: give smaller feeds"):
        waiting.put(1, "rows", "late", FEEDS[0]["x"])


def test_activations_keep_to_their_bounds(tmp_path: Path) -> None:
    import ml_dtypes

    kept = Activations(tmp_path, max_memory=16, max_disk=8)
    first, second = np.arange(4, dtype=np.float32), np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2)
    assert kept.put(0, "original", "a", first)
    assert kept.put(0, "compressed", "b", second)  # 8 bytes, on disk
    assert not kept.put(1, "original", "c", second)
    assert kept.get(0, "original", "a") is first
    found = kept.get(0, "compressed", "b")
    assert found.dtype == second.dtype
    np.testing.assert_array_equal(found, second)
    kept.drop(0, "original", ["a"])
    kept.drop(0, "compressed", ["b"])
    assert kept.get(0, "original", "a") is first
    kept.drop(0, "original")
    with pytest.raises(KeyError):
        kept.get(0, "original", "a")
    assert kept.put(1, "original", "c", first)
    kept.give_up(0, "compressed", ["a", "b"])
    assert not list(tmp_path.iterdir())
    assert kept.put(1, "compressed", "d", second)
    kept.drop(1)
    assert not list(tmp_path.iterdir())
