from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.feeds import FeedGroup, Feeds
from lowrank_onnx.evaluate.session import Session
from lowrank_onnx.moments import Moment, observe_moments, stream_moments
from lowrank_onnx.moments.feed_pass import add_value_outputs
from lowrank_onnx.moments.row_layout import find_row_layout
from lowrank_onnx.moments.row_sampling import LEAST_SAMPLED_ROWS, SAMPLED_ROWS_PER_FEATURE
from lowrank_onnx.types import Array, Feed
from tests.evaluate.fakes import FunctionSession
from tests.moments.builders import (
    exact_moment,
    feeds_of,
    moment_of,
    observe,
    one_operator,
    only_moment,
    run,
    whole_numbers,
)
from tests.passes.models import make_model, sites_of, value


def three_layers() -> onnx.ModelProto:
    """Two MatMuls on x, and one on the second layer's rectified output; whole numbers stay whole."""
    return make_model(
        [
            helper.make_node("MatMul", ["x", "wq"], ["q"], name="q"),
            helper.make_node("MatMul", ["x", "wk"], ["k"], name="k"),
            helper.make_node("Relu", ["k"], ["h"]),
            helper.make_node("MatMul", ["h", "wo"], ["o"], name="o"),
        ],
        [value("x", ["n", "t", 6])],
        [value("q"), value("o")],
        {"wq": whole_numbers(6, 4), "wk": whole_numbers(6, 8, seed=1), "wo": whole_numbers(8, 3, seed=2)},
    )


def hidden_rows(model: onnx.ModelProto, x: Array) -> Array:
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    hidden: Array = np.maximum(x.reshape(-1, 6) @ weights["wk"], 0.0)
    return hidden[np.newaxis]


def batches(*sizes: int) -> list[Array]:
    return [whole_numbers(size, 5, 6, seed=size) for size in sizes]


def large_image_conv(**attributes: int) -> onnx.ModelProto:
    return one_operator("Conv", whole_numbers(4, 3, 3, 3), pads=[1, 1, 1, 1], **attributes)


def images(count: int, size: int = 32) -> list[Array]:
    draw = np.random.default_rng(7)
    return [draw.standard_normal((2, 3, size, size)).astype(np.float32) for _ in range(count)]


def test_moments_of_intermediate_values_and_of_the_model_s_own_input() -> None:
    model, arrays = three_layers(), batches(1, 2, 3)
    before = model.SerializeToString()
    results = observe(model, arrays)
    x = np.concatenate([array.reshape(-1, 6) for array in arrays])
    second, mean = exact_moment(x[np.newaxis])
    np.testing.assert_allclose(moment_of(results, "q").second_moment, second, rtol=1e-14)
    np.testing.assert_allclose(moment_of(results, "q").mean, mean, rtol=1e-14)
    second, mean = exact_moment(hidden_rows(model, x))
    np.testing.assert_allclose(moment_of(results, "o").second_moment, second, rtol=1e-14)
    np.testing.assert_allclose(moment_of(results, "o").mean, mean, rtol=1e-14)
    assert moment_of(results, "o").rows == moment_of(results, "o").positions == 30
    assert list(results) == ["q", "k", "o"]
    assert model.SerializeToString() == before


def test_sites_that_read_the_same_rows_share_one_moment() -> None:
    results = observe(three_layers(), batches(2))
    assert results["q"] is results["k"]
    assert results["q"] is not results["o"]


def test_the_same_tensor_in_another_row_layout_is_another_moment() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "wide"], ["a"], name="wide"),
        helper.make_node("Conv", ["x", "point"], ["b"], name="point", auto_pad="VALID"),
        helper.make_node("ConvTranspose", ["x", "up"], ["c"], name="up", strides=[2]),
        helper.make_node("Conv", ["x", "stepping"], ["d"], name="stepping", strides=[2]),
    ]
    weights = {
        "wide": whole_numbers(4, 3, 3),
        "point": whole_numbers(4, 3, 1),
        "up": whole_numbers(3, 4, 3),
        "stepping": whole_numbers(4, 3, 1),
    }
    model = make_model(nodes, [value("x", [2, 3, 9])], [value(name) for name in "abcd"], weights)
    results = observe(model, [whole_numbers(2, 3, 9)])
    assert results["point"] is results["up"]  # a 1x1 patch is what a transposed convolution reads
    assert results["point"] is not results["stepping"]
    assert [moment_of(results, name).rows for name in ("wide", "point", "stepping")] == [14, 18, 10]
    assert moment_of(results, "wide").in_features == 9


def test_several_passes_give_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, arrays = three_layers(), batches(2, 3)
    opened: list[list[str]] = []

    def counting_run(proto: onnx.ModelProto) -> Session:
        opened.append([output.name for output in proto.graph.output])
        return run(proto)

    def go(max_bytes: int) -> dict[str, Moment | str]:
        opened.clear()
        return dict(
            observe_moments(model, sites_of(model), counting_run, feeds_of(arrays), seed=0, max_bytes=max_bytes)
        )

    at_once = go(2**31)
    assert opened[1:] == [["x.shape", "h"]]
    in_turn = go(45_000)
    assert opened[1:] == [["x.shape"], ["h"]]
    for name in ("q", "k", "o"):
        np.testing.assert_array_equal(moment_of(at_once, name).second_moment, moment_of(in_turn, name).second_moment)
    assert in_turn["q"] is in_turn["k"]
    assert go(100)["o"] == (
        "its second moment of 1 x 8 x 8, with an activation of 120 elements, takes 42528 bytes to observe, "
        "more than the 100 allowed"
    )


def test_sampling_takes_so_many_rows_evenly_and_the_same_ones_each_time() -> None:
    model, arrays = large_image_conv(), images(4)
    first = only_moment(observe(model, arrays, max_rows=602))
    again = only_moment(observe(model, arrays, max_rows=602))
    other = only_moment(observe(model, arrays, max_rows=602, seed=1))
    assert (first.rows, first.positions) == (602, 4 * 2 * 32 * 32)
    assert first.second_moment.tobytes() == again.second_moment.tobytes()
    assert not np.array_equal(first.second_moment, other.second_moment)


def test_each_feed_and_each_tensor_is_sampled_at_places_of_its_own() -> None:
    (image,) = images(1)
    model = large_image_conv()
    once = only_moment(observe(model, [image], max_rows=50))
    twice = only_moment(observe(model, [image, image], max_rows=100))
    assert twice.rows == 2 * once.rows
    assert not np.allclose(once.second_moment, twice.second_moment, rtol=1e-3)
    nodes = [
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("Conv", ["x", "w"], ["a"], name="plain"),
        helper.make_node("Conv", ["z", "w"], ["b"], name="negated"),
    ]
    pair = make_model(nodes, [value("x")], [value("a"), value("b")], {"w": whole_numbers(4, 3, 3, 3)})
    results = observe(pair, [image], max_rows=50)
    plain, negated = moment_of(results, "plain"), moment_of(results, "negated")
    assert not np.allclose(plain.second_moment, negated.second_moment, rtol=1e-3)


def test_a_sample_is_close_to_all_rows() -> None:
    """Independent noise is off by about 2 sqrt(in / n) in the spectral norm: 0.16 here."""
    model, arrays = large_image_conv(), images(6)
    full = only_moment(observe(model, arrays, max_rows=10**6)).second_moment[0]
    for seed in range(3):
        sampled = only_moment(observe(model, arrays, max_rows=4096, seed=seed)).second_moment[0]
        assert 0.0 < np.linalg.norm(sampled - full, 2) / np.linalg.norm(full, 2) < 0.25


def test_feeds_of_different_sizes_count_by_their_size() -> None:
    """Large dark images beside small bright ones: equal weights for the samples of each would be far off."""
    arrays = [np.full((1, 3, 40, 40), 1.0, np.float32), np.full((1, 3, 4, 4), 10.0, np.float32)]
    model = one_operator("Conv", whole_numbers(4, 3, 1, 1))
    moment = only_moment(observe(model, arrays, max_rows=24))
    assert moment.rows == 24
    expected = (1600 * 1.0 + 16 * 100.0) / 1616
    np.testing.assert_allclose(moment.second_moment, np.full((1, 3, 3), expected), rtol=1e-6)
    np.testing.assert_allclose(moment.mean, np.full((1, 3), 1760 / 1616), rtol=1e-6)


def test_a_feed_with_few_rows_leaves_its_share_to_the_next() -> None:
    model = one_operator("Conv", whole_numbers(4, 3, 1, 1))
    arrays = [whole_numbers(1, 3, 2, 2), whole_numbers(1, 3, 20, 20)]
    assert only_moment(observe(model, arrays, max_rows=100)).rows == 100
    assert only_moment(observe(model, list(reversed(arrays)), max_rows=100)).rows == 54


def test_default_rows_grow_with_the_patch_and_matmul_takes_all() -> None:
    few, many = one_operator("Conv", whole_numbers(4, 3, 1, 1)), one_operator("Conv", whole_numbers(4, 80, 3, 3))
    assert only_moment(observe(few, [whole_numbers(1, 3, 80, 80)])).rows == LEAST_SAMPLED_ROWS == 4096
    assert only_moment(observe(many, [whole_numbers(1, 80, 82, 82)])).rows == 720 * SAMPLED_ROWS_PER_FEATURE == 4320
    matmul = one_operator("MatMul", whole_numbers(3, 4))
    assert only_moment(observe(matmul, [whole_numbers(9000, 3)])).rows == 9000
    assert only_moment(observe(matmul, [whole_numbers(9000, 3)], max_rows=7)).rows == 7


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    data_type = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[dtype]
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="site")],
        [value("x", ["n", 5], data_type)],
        [value("y", None, data_type)],
        {"w": whole_numbers(5, 3).astype(dtype)},
    )
    x = np.random.default_rng(0).standard_normal((300, 5)).astype(dtype) * np.asarray(60.0, dtype)
    moment = only_moment(observe(model, [x]))
    second, mean = exact_moment(x[np.newaxis])
    assert np.isfinite(second).all()
    np.testing.assert_allclose(moment.second_moment, second, rtol=1e-13 if dtype == "float64" else 1e-5)
    np.testing.assert_allclose(moment.mean, mean, rtol=1e-12)


def fake_observe(arrays: Sequence[Array], weight: Array, op_type: str = "MatMul") -> Moment | str:
    """Observe with sessions that hand the feed's array out, as activations of any dtype."""
    model = one_operator(op_type, weight)

    def open_fake(proto: onnx.ModelProto) -> FunctionSession:
        def shape_or_value(feed: Feed) -> dict[str, Array]:
            is_shape = any(node.op_type == "Shape" for node in proto.graph.node)
            return {"x.shape": np.array(feed["x"].shape) if is_shape else feed["x"]}

        return FunctionSession(shape_or_value, outputs=["x.shape"])

    (result,) = observe_moments(model, sites_of(model), open_fake, feeds_of(arrays), seed=0).values()
    return result


def test_bfloat16_is_widened() -> None:
    x = whole_numbers(300, 5).astype(ml_dtypes.bfloat16)
    result = fake_observe([x], whole_numbers(5, 3).astype(ml_dtypes.bfloat16))
    assert isinstance(result, Moment)
    np.testing.assert_allclose(result.second_moment, exact_moment(x[np.newaxis])[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_give_a_reason(dtype: str, bad: float) -> None:
    good = whole_numbers(4, 5).astype(dtype)
    poisoned = good.copy()
    poisoned[2, 3] = bad
    assert fake_observe([good, poisoned, good], whole_numbers(5, 3).astype(dtype)) == (
        "its input 'x' holds NaN or infinity on feed 2 of 3"
    )


def test_one_bad_tensor_leaves_the_others_alone() -> None:
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="good"),
            helper.make_node("Log", ["x"], ["z"]),
            helper.make_node("MatMul", ["z", "w"], ["u"], name="bad"),
        ],
        [value("x", ["n", 4])],
        [value("y"), value("u")],
        {"w": whole_numbers(4, 3)},
    )
    positive, negative = np.ones((3, 4), np.float32), np.full((3, 4), -1.0, np.float32)
    results = observe(model, [positive, negative, positive])
    assert results["bad"] == "its input 'z' holds NaN or infinity on feed 2 of 3"
    assert moment_of(results, "good").rows == 9


def test_squares_that_overflow_give_a_reason() -> None:
    x = np.full((3, 5), 1e200)
    assert fake_observe([x], whole_numbers(5, 3).astype(np.float64)) == (
        "its input 'x' is so large that its squares overflow"
    )


def test_no_rows_and_wrong_shapes_give_a_reason() -> None:
    weight = whole_numbers(5, 3)
    assert fake_observe([np.zeros((0, 5), np.float32)], weight) == "its input 'x' had no rows on any feed"
    assert fake_observe([np.zeros((2, 4), np.float32)], weight) == (
        "its input 'x' has shape [2, 4], expected 5 on axis -1"
    )


def test_a_dead_input_gives_zeros() -> None:
    moment = only_moment(observe(one_operator("MatMul", whole_numbers(4, 3)), [np.zeros((7, 4), np.float32)]))
    assert not moment.second_moment.any()
    assert not moment.mean.any()
    assert moment.rows == 7


def test_sites_in_subgraphs_give_a_reason() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], name="inner")], "branch", [], [value("z", [3, 3])]
    )
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="outer"),
            helper.make_node("If", ["flag"], ["u"], then_branch=branch, else_branch=branch, name="if"),
        ],
        [value("x", [3, 4]), value("flag", [], TensorProto.BOOL)],
        [value("y"), value("u")],
        {"w": whole_numbers(4, 3)},
    )
    sites = sites_of(model)

    def load() -> Iterator[Feed]:
        yield {"x": whole_numbers(3, 4), "flag": np.asarray(True)}

    results = observe_moments(model, sites, run, Feeds("one", False, 1, (FeedGroup(1, load),)), seed=0)
    inner = [result for name, result in results.items() if name != "outer"]
    assert inner == ["it is in a subgraph, whose values onnxruntime doesn't return"] * 2
    assert isinstance(results["outer"], Moment)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"strides": [0, 1]}, "strides is [0, 1], expected 2 numbers of at least 1"),
        ({"dilations": [1]}, "dilations is [1], expected 2 numbers of at least 1"),
        ({"pads": [1, 1]}, "pads is [1, 1], expected 4 numbers of at least 0"),
        ({"pads": [0, 0, -1, 0]}, "pads is [0, 0, -1, 0], expected 4 numbers of at least 0"),
    ],
)
def test_malformed_attributes_give_a_reason(attributes: dict[str, Any], reason: str) -> None:
    model = one_operator("Conv", whole_numbers(4, 3, 3, 3), **attributes)
    (site,) = sites_of(model)
    assert find_row_layout(model, site) == reason
    assert observe(model, [whole_numbers(1, 3, 9, 9)]) == {"site": reason}


def test_finished_moments_can_live_on_disk(tmp_path: Path) -> None:
    model, arrays = three_layers(), batches(2)
    kept, held = observe(model, arrays, directory=tmp_path), observe(model, arrays)
    assert len(list(tmp_path.glob("*.bin"))) == 2
    for name in ("q", "o"):
        on_disk = moment_of(kept, name).second_moment
        assert isinstance(on_disk, np.memmap)
        assert not on_disk.flags.writeable
        np.testing.assert_array_equal(on_disk, moment_of(held, name).second_moment)
    assert kept["q"] is kept["k"]


def test_arguments_that_can_not_be_met() -> None:
    model, arrays = three_layers(), batches(1)
    with pytest.raises(UsageError, match=r"^max_bytes 0: expected at least 1$"):
        observe(model, arrays, max_bytes=0)
    with pytest.raises(UsageError, match=r"^max_rows 0: expected at least 1$"):
        observe(model, arrays, max_rows=0)
    with pytest.raises(UsageError, match=r"^there is no feed to observe the model on: give at least one$"):
        observe(model, [])
    with pytest.raises(ModelError, match="the main graph has no value 'ghost'"):
        add_value_outputs(model, {"ghost": "float32"})
    assert observe_moments(model, [], run, feeds_of(arrays), seed=0) == {}


class CountingProgress:
    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done = 0

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[CountingProgress]:
        assert name == "observing inputs"
        self.totals.append(total)
        yield self

    def advance(self, n: int = 1, detail: str = "") -> None:
        self.done += n


def test_progress_counts_every_feed_of_every_pass() -> None:
    progress = CountingProgress()
    observe(three_layers(), batches(1, 2, 3), max_bytes=45_000, progress=progress)
    assert progress.totals == [6]
    assert progress.done == 6


class Alive:
    """How many of the arrays that were shown to it still live, and the most that ever did."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def watch(self, array: Array) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(array, self._gone)

    def _gone(self) -> None:
        self.now -= 1


def test_memory_does_not_grow_with_the_feeds() -> None:
    """200 feeds of 64 kB each, made as they are asked for: two live at most, and the activations of one run."""
    fed, returned = Alive(), Alive()

    def feeds(count: int) -> Feeds:
        def load() -> Iterator[Feed]:
            for number in range(count):
                array = np.full((1, 256, 64), 1.0 + number % 3, np.float32)
                fed.watch(array)
                yield {"x": array}
                del array

        return Feeds("many", False, count, (FeedGroup(count, load),))

    class WatchedSession:
        def __init__(self, session: Session) -> None:
            self.session = session
            self.inputs, self.outputs, self.logits = session.inputs, session.outputs, session.logits

        def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
            values = self.session.run(feed, outputs)
            for array in values.values():
                returned.watch(array)
            return values

    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
            helper.make_node("Relu", ["y"], ["z"]),
            helper.make_node("MatMul", ["z", "v"], ["u"], name="second"),
        ],
        [value("x", ["n", "t", 64])],
        [value("u")],
        {"w": whole_numbers(64, 32), "v": whole_numbers(32, 16)},
    )

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        results = observe_moments(
            model, sites_of(model), lambda proto: WatchedSession(run(proto)), feeds(count), seed=0
        )
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert moment_of(results, "second").rows == count * 256
        return highest

    few, many = peak(10), peak(200)
    assert many < few + 64_000
    assert fed.most <= 3  # the largest so far, the last one and the next, while the largest is looked for
    assert returned.most == 2  # x and z


def test_streaming_gives_each_moment_once_with_all_its_sites() -> None:
    model = three_layers()
    stream = stream_moments(model, sites_of(model), run, feeds_of(batches(1)), seed=0)
    assert [names for names, _ in stream] == [("q", "k"), ("o",)]


@pytest.mark.parametrize(("rows", "sessions"), [((3, 3, 1), 1), ((1, 3), 2)])
def test_shapes_of_the_first_feed_spare_a_run_where_no_other_is_larger(rows: tuple[int, ...], sessions: int) -> None:
    model, arrays = three_layers(), batches(*rows)
    opened: list[onnx.ModelProto] = []

    def counting_run(proto: onnx.ModelProto) -> Session:
        opened.append(proto)
        return run(proto)

    known = {"x": (rows[0], 5, 6), "h": (rows[0], 5, 8)}
    seen = observe_moments(model, sites_of(model), counting_run, feeds_of(arrays), seed=0, first_shapes=known)
    assert len(opened) == sessions
    for name, moment in observe(model, arrays).items():
        np.testing.assert_array_equal(
            moment_of(seen, name).second_moment, moment_of({name: moment}, name).second_moment
        )
