from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.session import open_session
from lowrank_onnx.evaluate.synthetic import synthetic_feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Array, Feed
from tests.evaluate.fakes import make_model, value


def make(*inputs: InputSpec, **options: object) -> Feed:
    return next(iter(synthetic_feeds(inputs, seed=0, **options)))  # type: ignore[arg-type]


def make_one(dtype: str, *shape: int | str | None, name: str = "x", **options: object) -> Array:
    return make(InputSpec(name, dtype, shape), **options)[name]


def test_the_same_seed_gives_the_same_bytes_again_and_again() -> None:
    inputs = [InputSpec("x", "float32", ("n", 4)), InputSpec("ids", "int64", ("n", "sequence"))]

    def content(seed: int) -> list[bytes]:
        feeds = synthetic_feeds(inputs, seed=seed)
        assert [{name: array.tobytes() for name, array in feed.items()} for feed in feeds] == [
            {name: array.tobytes() for name, array in feed.items()} for feed in feeds
        ]
        return [array.tobytes() for feed in feeds for array in feed.values()]

    assert content(3) == content(3)
    assert content(3) != content(4)
    assert len(set(content(3))) == 16  # no two feeds, no two inputs alike


def test_they_are_called_synthetic() -> None:
    feeds = synthetic_feeds([InputSpec("x", "float32", ("n", 4))], seed=5, feeds=3, batch_size=2)
    assert feeds.synthetic
    assert feeds.description == "3 synthetic feeds (seed 5)"
    assert (len(feeds), feeds.samples) == (3, 6)


@pytest.mark.parametrize(
    ("dtype", "dims", "shape"),
    [
        ("float32", ("n", 3, 224, 224), (2, 3, 224, 224)),
        ("float32", (None, None, None, None), (2, 3, 64, 64)),
        ("float32", ("DynamicDimension.0", 3, "DynamicDimension.1", "DynamicDimension.2"), (2, 3, 64, 64)),
        ("float32", ("batch", "channels", "h", "w"), (2, 3, 64, 64)),
        ("float32", ("sequence", "batch_size", 8), (32, 2, 8)),
        ("float32", (1, 1, None, None, None), (1, 1, 16, 16, 16)),
        ("float32", (None, None), (2, 512)),
        ("float32", ("batch", "sequence"), (2, 512)),
        ("float32", ("N", "audio_samples"), (2, 16_000)),
        ("int64", (None, None), (2, 32)),
        ("int64", ("batch", "past_sequence_length + 1"), (2, 33)),
        ("float32", (), ()),
    ],
)
def test_open_dims_get_sizes(dtype: str, dims: tuple[int | str | None, ...], shape: tuple[int, ...]) -> None:
    assert make_one(dtype, *dims, batch_size=2).shape == shape


def test_the_same_symbol_has_the_same_size_and_the_caller_decides() -> None:
    inputs = (InputSpec("a", "float32", ("k", 4)), InputSpec("b", "float32", (4, "k")))
    feed = make(*inputs, batch_size=3)
    assert (feed["a"].shape, feed["b"].shape) == ((3, 4), (4, 3))
    feed = make(*inputs, batch_size=3, dims={"k": 7})
    assert (feed["a"].shape, feed["b"].shape) == ((7, 4), (4, 7))


def test_a_symbol_shared_with_other_inputs_is_no_waveform() -> None:
    feed = make(InputSpec("x", "float32", ("n", "seq")), InputSpec("ids", "int64", ("n", "seq")))
    assert feed["x"].shape == feed["ids"].shape == (1, 32)
    assert make_one("float32", "n", "seq", name="mask").shape == (1, 32)


def test_states_have_the_batch_where_their_dims_are_open() -> None:
    assert make_one("float32", 2, None, 128, name="state").shape == (2, 1, 128)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_floats_are_standard_normal(dtype: str) -> None:
    x = make_one(dtype, 64, 64)
    assert x.dtype.name == dtype
    assert abs(float(x.astype(np.float64).mean())) < 0.1
    assert float(x.astype(np.float64).std()) == pytest.approx(1.0, abs=0.1)


def test_integers_follow_their_names() -> None:
    feed = make(
        InputSpec("attention_mask", "int64", ("n", "t")),
        InputSpec("token_type_ids", "int64", ("n", "t")),
        InputSpec("position_ids", "int32", ("n", "t")),
        InputSpec("input_ids", "int64", ("n", "t")),
        InputSpec("lengths", "int64", ("n",)),
        InputSpec("sr", "int64", ()),
        dims={"t": 5},
        batch_size=2,
    )
    assert feed["attention_mask"].tolist() == [[1] * 5] * 2
    assert feed["token_type_ids"].tolist() == [[0] * 5] * 2
    assert feed["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert feed["position_ids"].dtype == np.int32
    assert feed["input_ids"].min() >= 0
    assert feed["input_ids"].max() < 100
    assert len(np.unique(feed["input_ids"])) > 2
    assert feed["lengths"].tolist() == [32, 32]
    assert feed["sr"].tolist() == 16_000
    assert all(isinstance(array, np.ndarray) for array in feed.values())


def test_limits_hold_for_every_integer() -> None:
    limits = {"input_ids": 7, "position_ids": 3}
    feed = make(
        InputSpec("input_ids", "int64", (4, 50)), InputSpec("position_ids", "int64", (4, 50)), integer_limits=limits
    )
    assert set(np.unique(feed["input_ids"])) == set(range(7))
    assert feed["position_ids"].max() == 2


def test_images_of_bytes_use_their_range_and_bools_both_values() -> None:
    assert make_one("uint8", 1, 3, 64, 64).max() > 240
    assert set(np.unique(make_one("bool", 100))) == {False, True}
    assert make_one("bool", 100, name="mask").all()
    assert (make_one("float32", 5, name="mask") == 1).all()


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["float16", "float32", "int8", "uint8", "int32", "uint64", "bool"]),
    dims=st.lists(st.one_of(st.integers(1, 4), st.sampled_from(["n", "seq", "h", "k + 2"]), st.none()), max_size=4),
    name=st.sampled_from(["x", "mask", "position_ids", "input_ids", "token_type_ids", "lengths", "sr", "state"]),
)
def test_any_signature_gets_what_it_asks_for(dtype: str, dims: list[int | str | None], name: str) -> None:
    array = make_one(dtype, *dims, name=name)
    assert array.dtype.name == dtype
    assert array.ndim == len(dims)
    assert all(dim == size for dim, size in zip(dims, array.shape, strict=True) if isinstance(dim, int))
    assert array.size > 0


def test_they_run_a_model_with_a_table() -> None:
    table = numpy_helper.from_array(np.eye(5, dtype=np.float32), "table")
    model = make_model(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [value("ids", ["n", "seq"], TensorProto.INT64)],
        [value("y", None)],
        [table],
    )
    session = open_session(model.SerializeToString())
    for feed in synthetic_feeds(session.inputs, seed=0, integer_limits={"ids": 5}):
        assert session.run(feed)["y"].shape == (1, 32, 5)


@pytest.mark.parametrize("dtype", ["str", "seq(tensor(float))", "complex64", "map(int64,tensor(float))"])
def test_what_cannot_be_made_up_asks_for_real_feeds(dtype: str) -> None:
    with pytest.raises(UsageError, match=r"the model's input 'x' is .*, which can't be made up: give real feeds"):
        make_one(dtype, "n")


def test_optional_inputs_are_left_out() -> None:
    feed = make(InputSpec("x", "float32", (1,)), InputSpec("maybe", "optional(tensor(float))", ()))
    assert list(feed) == ["x"]


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="0 feeds of 1 samples: expected at least 1 of each"):
        make_one("float32", 1, feeds=0)
    with pytest.raises(UsageError, match="dim k=0: expected a size of at least 1"):
        make_one("float32", "k", dims={"k": 0})
