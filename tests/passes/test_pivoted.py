"""The pivoted form at exact rank, for every operator that offers it: random shapes, attributes, dtypes and pivots."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.forms import PIVOTED, Pivoted
from lowrank_onnx.types import Array, Site, numpy_dtype
from tests.passes.models import (
    Outcome,
    assert_same,
    compress,
    make_model,
    run_ort,
    run_reference,
    sites_of,
    tensors,
    value,
    weight,
)

TOLERANCE = {"float16": 5e-2, "float32": 1e-4, "float64": 1e-10}


def of_rank(rank: int, *shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """A matrix (in, out) of this rank whose columns are in general position."""
    left, right = weight(shape[0], rank, seed=seed), weight(rank, shape[1], seed=seed + 1)
    product = left.astype(np.float64) @ right.astype(np.float64) / np.sqrt(rank)
    return np.asarray(product.astype(numpy_dtype(dtype)))


def pivoted(model: onnx.ModelProto, rank: int, start: int) -> Outcome:
    outcome = compress(model, lambda site: rank, Pivoted(start))
    assert all(PIVOTED in site.forms for site in outcome.sites)
    return outcome


def ops(outcome: Outcome) -> list[str]:
    return [node.op_type for node in outcome.model.graph.node if node.op_type not in ("Identity", "Cast")]


SIZES = st.tuples(st.integers(2, 9), st.integers(3, 9))
PLACES = st.tuples(st.floats(0, 1), st.floats(0, 1))


def place(sizes: tuple[int, int], places: tuple[float, float]) -> tuple[int, int]:
    """A rank below min(in, out), and the first pivot."""
    rank = 1 + round(places[0] * (min(sizes) - 2)) if min(sizes) > 1 else 1
    return rank, round(places[1] * (sizes[1] - rank))


def nodes_for(start: int, rank: int, out_features: int, op_type: str) -> list[str]:
    others = (start > 0) + (start + rank < out_features)
    return [op_type] * (1 + others) + ["Concat"]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    ones=st.integers(0, 2),
    sizes=SIZES,
    places=PLACES,
    vector=st.booleans(),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_matmul(
    batch: list[int],
    ones: int,
    sizes: tuple[int, int],
    places: tuple[float, float],
    vector: bool,
    dtype: str,
) -> None:
    rank, start = place(sizes, places)
    w = of_rank(rank, *sizes, dtype=dtype).reshape(*(1,) * ones, *sizes)
    x = weight(sizes[0], seed=3, dtype=dtype) if vector else weight(*batch, 4, sizes[0], seed=3, dtype=dtype)
    data_type = h.np_dtype_to_tensor_dtype(w.dtype)
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        [value("x", x.shape, data_type)],
        [value("y", np.matmul(x, w).shape, data_type)],
        {"w": w},
    )
    outcome = pivoted(model, rank, start)
    assert ops(outcome) == nodes_for(start, rank, sizes[1], "MatMul")
    tolerance = TOLERANCE[dtype] * amplification(w.reshape(sizes), rank, start)
    assert_same(model, outcome.model, {"x": x}, tolerance=tolerance, run=run_reference)


def amplification(w: Array, rank: int, start: int) -> float:
    """How much the condition of the pivots adds to rounding."""
    return float(np.linalg.cond(w[:, start : start + rank].astype(np.float64)))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    sizes=SIZES,
    places=PLACES,
    transposed=st.tuples(st.booleans(), st.booleans()),
    with_bias=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_gemm(
    rows: int,
    sizes: tuple[int, int],
    places: tuple[float, float],
    transposed: tuple[bool, bool],
    with_bias: bool,
    dtype: str,
) -> None:
    rank, start = place(sizes, places)
    matrix = of_rank(rank, *sizes, dtype=dtype)
    x = weight(rows, sizes[0], seed=3, dtype=dtype)
    stored = {"w": matrix.T.copy() if transposed[1] else matrix}
    if with_bias:
        stored["b"] = weight(sizes[1], seed=4, dtype=dtype)
    data_type = h.np_dtype_to_tensor_dtype(x.dtype)
    feed = x.T.copy() if transposed[0] else x
    model = make_model(
        [h.make_node("Gemm", ["x", *stored], ["y"], transA=int(transposed[0]), transB=int(transposed[1]))],
        [value("x", feed.shape, data_type)],
        [value("y", [rows, sizes[1]], data_type)],
        stored,
    )
    outcome = pivoted(model, rank, start)
    assert ops(outcome) == nodes_for(start, rank, sizes[1], "Gemm")
    assert ("b" in {stored.name for stored in tensors(outcome.model)}) is False
    tolerance = TOLERANCE[dtype] * amplification(matrix, rank, start)
    for optimized in (False, True):
        run = partial(run_ort, optimized=optimized)
        assert_same(model, outcome.model, {"x": feed}, tolerance=tolerance, run=run)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 4),
    out_channels=st.integers(3, 8),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    places=PLACES,
    with_bias=st.booleans(),
    data=st.data(),
)
def test_conv(
    channels: int,
    out_channels: int,
    kernel: list[int],
    places: tuple[float, float],
    with_bias: bool,
    data: st.DataObject,
) -> None:
    in_features = channels * int(np.prod(kernel))
    if in_features == 1:
        channels, in_features = 2, 2
    sizes = (in_features, out_channels)
    rank, start = place(sizes, places)
    matrix = of_rank(rank, *sizes)
    stored: dict[str, Array] = {"w": matrix.T.reshape(out_channels, channels, *kernel).copy()}
    if with_bias:
        stored["b"] = weight(out_channels, seed=4)
    spatial = len(kernel)
    attributes: dict[str, Any] = {
        "strides": data.draw(st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)),
        "dilations": data.draw(st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)),
        "pads": data.draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial)),
    }
    x = weight(2, channels, *(7,) * spatial, seed=3)
    model = make_model(
        [h.make_node("Conv", ["x", *stored], ["y"], **attributes)],
        [value("x", x.shape)],
        [value("y", [None] * (2 + spatial))],
        stored,
    )
    outcome = pivoted(model, rank, start)
    assert ops(outcome) == nodes_for(start, rank, out_channels, "Conv")
    tolerance = TOLERANCE["float32"] * amplification(matrix, rank, start)
    for optimized in (False, True):
        assert_same(model, outcome.model, {"x": x}, tolerance=tolerance, run=partial(run_ort, optimized=optimized))


def test_bfloat16_is_exact_on_exactly_representable_factors() -> None:
    w = (np.array([[1.0], [2.0], [-4.0]]) @ np.array([[1.0, 0.5, 4.0, -2.0]])).astype(numpy_dtype("bfloat16"))
    model = make_model(
        [
            h.make_node("Cast", ["x"], ["xb"], to=T.BFLOAT16),
            h.make_node("MatMul", ["xb", "w"], ["yb"]),
            h.make_node("Cast", ["yb"], ["y"], to=T.FLOAT),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        {"w": w},
    )
    outcome = pivoted(model, 1, 0)
    assert {new.dtype for new in outcome.result.new_tensors} == {"bfloat16"}
    x = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    assert_same(model, outcome.model, {"x": x}, tolerance=2**-7, run=run_reference)


@pytest.mark.parametrize("rank", [2, 5, 8])
def test_truncated_it_is_what_the_pair_is(rank: int) -> None:
    w, x = weight(12, 10), weight(20, 12, seed=1)
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"])], [value("x", x.shape)], [value("y", [20, 10])], {"w": w}
    )
    pair = compress(model, lambda site: rank)
    assert_same(pair.model, pivoted(model, rank, 1).model, {"x": x}, tolerance=1e-4)


def gemm(bias: Array | None, **attributes: Any) -> onnx.ModelProto:
    """y = Gemm(x, w, c) with a stored C, or (None) one that is a graph input."""
    inputs = [value("x", [2, 3])] + ([value("c", [4])] if bias is None else [])
    stored = {"w": weight(3, 4)} | ({} if bias is None else {"c": bias})
    return make_model([h.make_node("Gemm", ["x", "w", "c"], ["y"], **attributes)], inputs, [value("y", [2, 4])], stored)


@pytest.mark.parametrize(
    ("bias", "attributes"),
    [
        (weight(4), {"alpha": 0.5}),
        (weight(4), {"beta": 2.0}),
        (weight(2, 4), {}),
        (weight(1), {}),
        (None, {}),
    ],
)
def test_a_gemm_whose_bias_can_not_be_split_is_offered_as_a_pair_only(
    bias: Array | None, attributes: dict[str, float]
) -> None:
    (site,) = sites_of(gemm(bias, **attributes))
    assert [form.name for form in site.forms] == ["pair"]
    assert site.bias is None


def test_a_gemm_with_its_weight_first_is_offered_as_a_pair_only() -> None:
    model = make_model(
        [h.make_node("Gemm", ["w", "x"], ["y"])], [value("x", [3, 2])], [value("y", [4, 2])], {"w": weight(4, 3)}
    )
    assert [form.name for form in sites_of(model)[0].forms] == ["pair"]


def matmul(opset: int) -> onnx.ModelProto:
    return make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        {"w": weight(3, 4)},
        opset=opset,
    )


@pytest.mark.parametrize(("opset", "names"), [(10, ["pair"]), (11, ["pair", "pivoted"])])
def test_the_last_axis_can_be_named_from_opset_11_on(opset: int, names: list[str]) -> None:
    assert [form.name for form in sites_of(matmul(opset))[0].forms] == names


@pytest.mark.parametrize(("groups", "offered"), [(1, True), (2, False)])
def test_grouped_convolutions_would_interleave(groups: int, offered: bool) -> None:
    model = make_model(
        [h.make_node("Conv", ["x", "w"], ["y"], group=groups)],
        [value("x", [1, 4, 5, 5])],
        [value("y", [1, 4, 3, 3])],
        {"w": weight(4, 4 // groups, 3, 3)},
    )
    assert (PIVOTED in sites_of(model)[0].forms) == offered


def test_a_bias_that_others_read_stays() -> None:
    nodes = [
        h.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc"),
        h.make_node("Add", ["h", "b"], ["y"]),
    ]
    stored = {"w": of_rank(2, 3, 4), "b": weight(4, seed=9)}
    model = make_model(nodes, [value("x", [2, 3])], [value("y", [2, 4])], stored)
    outcome = pivoted(model, 2, 0)
    names = {stored.name for stored in tensors(outcome.model)}
    assert names == {"b", "w.left", "w.after", "w.bias", "w.bias_after"}
    assert_same(model, outcome.model, {"x": weight(2, 3, seed=5)}, tolerance=1e-4)


def test_sites_that_share_a_weight_share_its_parts_and_have_their_own_biases() -> None:
    nodes = [h.make_node("Gemm", ["x", "w", f"b{i}"], [f"y{i}"], name=f"fc{i}") for i in range(2)]
    stored = {"w": of_rank(2, 3, 4), "b0": weight(4, seed=8), "b1": weight(4, seed=9)}
    model = make_model(nodes, [value("x", [2, 3])], [value("y0", [2, 4]), value("y1", [2, 4])], stored)
    outcome = pivoted(model, 2, 0)
    assert sorted(t.name for t in tensors(outcome.model)) == [
        "w.after", "w.bias", "w.bias_1", "w.bias_after", "w.bias_after_1", "w.left",
    ]  # fmt: skip
    assert_same(model, outcome.model, {"x": weight(2, 3, seed=5)}, tolerance=1e-4)


def test_a_weight_shared_by_sites_of_which_one_has_no_such_form_has_none() -> None:
    nodes = [
        h.make_node("Gemm", ["x", "w", "b"], ["y0"]),
        h.make_node("Gemm", ["x", "w", "b"], ["y1"], alpha=0.5),
    ]
    model = make_model(
        nodes, [value("x", [2, 3])], [value("y0", [2, 4]), value("y1", [2, 4])], {"w": weight(3, 4), "b": weight(4)}
    )
    sites: tuple[Site, ...] = sites_of(model)
    assert [[form.name for form in site.forms] for site in sites] == [["pair"]] * 2


def test_values_between_the_nodes_are_named_and_shaped() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        [value("x", ["n", 3])],
        [value("y", ["n", 7])],
        {"w": weight(3, 7)},
    )
    outcome = pivoted(model, 2, 1)
    found = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in outcome.model.graph.value_info
    }
    assert found == {"y.mid": ["n", 2], "y.before": ["n", 1], "y.after": ["n", 4]}
    assert [node.name for node in outcome.model.graph.node] == ["fc.left", "fc.before", "fc.after", "fc"]
