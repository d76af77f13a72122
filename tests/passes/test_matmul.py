from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.forms import PAIR, PIVOTED
from lowrank_onnx.types import Array, Rearrangement, numpy_dtype, rearrange
from tests.passes.models import (
    assert_same,
    choose,
    compress,
    constant,
    factor,
    make_model,
    reason_of,
    run_ort,
    run_reference,
    sites_of,
    value,
    weight,
)

W = weight(3, 4)
TOLERANCE = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}


def model_of(
    x_shape: tuple[int | str, ...], w: Array, *, on_the_right: bool = True, known: bool = True
) -> onnx.ModelProto:
    """One MatMul between two Identity nodes, so that only the shape of x is stated, and that only if `known`."""
    data_type = h.np_dtype_to_tensor_dtype(w.dtype)
    dims = max(len(x_shape), w.ndim) - (min(len(x_shape), w.ndim) == 1)
    return make_model(
        [
            h.make_node("Identity", ["input"], ["x"]),
            h.make_node("MatMul", ["x", "w"] if on_the_right else ["w", "x"], ["y"], name="fc"),
            h.make_node("Identity", ["y"], ["output"]),
        ],
        [value("input", x_shape, data_type)],
        [value("output", [None] * dims, data_type)],
        {"w": w},
        value_info=[value("x", x_shape, data_type)] if known else [],
    )


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    ones=st.integers(0, 2),
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    vector=st.booleans(),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_weight_on_the_right_is_exact_at_full_rank(
    batch: list[int], ones: int, sizes: tuple[int, int], vector: bool, dtype: str
) -> None:
    w = weight(*(1,) * ones, *sizes, dtype=dtype)
    x = weight(sizes[0], seed=1, dtype=dtype) if vector else weight(*batch, 4, sizes[0], seed=1, dtype=dtype)
    model = model_of(x.shape, w)
    outcome = compress(model)
    (site,) = outcome.sites
    assert site.shape.max_rank == min(sizes)
    assert (site.forms, site.input, site.output, site.counted, site.counted_features) == (
        (PAIR, PIVOTED),
        "x",
        "y",
        "y",
        sizes[1],
    )
    assert_same(model, outcome.model, {"input": x}, tolerance=TOLERANCE[dtype], run=run_reference)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    ones=st.integers(0, 2),
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    vector=st.booleans(),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_weight_on_the_left_is_exact_at_full_rank(
    batch: list[int], ones: int, sizes: tuple[int, int], vector: bool, dtype: str
) -> None:
    w = weight(*(1,) * (0 if vector else ones), *sizes, dtype=dtype)
    x = weight(sizes[1], seed=1, dtype=dtype) if vector else weight(*batch, sizes[1], 5, seed=1, dtype=dtype)
    model = model_of(x.shape, w, on_the_right=False)
    outcome = compress(model)
    (site,) = outcome.sites
    assert (site.shape.in_features, site.shape.out_features) == (sizes[1], sizes[0])
    assert (site.input, site.counted, site.counted_features) == ("x", "y", sizes[0])
    assert_same(model, outcome.model, {"input": x}, tolerance=TOLERANCE[dtype], run=run_reference)


def test_bfloat16() -> None:
    """At rank 1 of a rank-1 weight with exactly representable factors, bfloat16 loses nothing."""
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
    outcome = compress(model, lambda site: 1)
    assert outcome.sites[0].weight.dtype == "bfloat16"
    assert {new.dtype for new in outcome.result.new_tensors} == {"bfloat16"}
    x = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    assert_same(model, outcome.model, {"x": x}, tolerance=2**-7, run=run_reference)


@pytest.mark.parametrize("on_the_right", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_truncated_rank_stays_below_the_next_singular_value(on_the_right: bool, rank: int) -> None:
    w = weight(8, 12, dtype="float64")
    x = weight(*((5, 8) if on_the_right else (12, 5)), seed=1, dtype="float64")
    model = model_of(x.shape, w, on_the_right=on_the_right)
    (y,), (z,) = run_ort(model, {"input": x}), run_ort(compress(model, lambda site: rank).model, {"input": x})
    error = np.linalg.norm(y - z)
    following = np.linalg.svd(w, compute_uv=False)[rank]
    assert 0 < error <= np.linalg.norm(x, 2) * following * math.sqrt(8 - rank) * (1 + 1e-9)
    assert np.linalg.norm(y - z, 2) <= np.linalg.norm(x, 2) * following * (1 + 1e-9)


def test_factors_are_stored_as_plain_matrices() -> None:
    outcome = compress(model_of((4, 6), weight(6, 5)), lambda site: 2)
    left, right = outcome.result.new_tensors
    assert (left.name, left.part, left.shape) == ("w.left", "left", (6, 2))
    assert (right.name, right.part, right.shape) == ("w.right", "right", (2, 5))
    assert left.scope == right.scope == ()
    assert [node.op_type for node in outcome.model.graph.node] == ["Identity", "MatMul", "MatMul", "Identity"]


def test_matrices_of_a_weight_on_the_left_are_transposed() -> None:
    w = weight(3, 4)
    (site,) = sites_of(model_of((4, 2), w, on_the_right=False))
    assert site.to_matrices == Rearrangement((1, 3, 4), (0, 2, 1), (1, 4, 3))
    np.testing.assert_array_equal(rearrange(w, site.to_matrices)[0], w.T)
    left, right = factor(rearrange(w, site.to_matrices), 3)
    np.testing.assert_allclose((left @ right)[0], w.T, atol=1e-6)


@pytest.mark.parametrize(
    ("known", "x_shape", "on_the_right", "expected"),
    [
        (True, (2, "seq", 6), True, (2, "seq", 3)),
        (True, (6,), True, (3,)),
        (False, (4, 6), True, None),
        (True, (2, 6, "n"), False, (2, 3, "n")),
        (True, (6,), False, (3,)),
    ],
)
def test_mid_states_what_is_known_of_its_shape(
    known: bool, x_shape: tuple[int | str, ...], on_the_right: bool, expected: tuple[int | str, ...] | None
) -> None:
    outcome = compress(model_of(x_shape, weight(6, 6), on_the_right=on_the_right, known=known), lambda site: 3)
    mid = outcome.model.graph.value_info[-1]
    assert mid.name == "y.mid"
    assert mid.type.tensor_type.elem_type == T.FLOAT
    assert mid.type.tensor_type.HasField("shape") == (expected is not None)
    if expected is not None:
        dims = [d.dim_param or d.dim_value for d in mid.type.tensor_type.shape.dim]
        assert tuple(dims) == expected


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            make_model(
                [h.make_node("MatMul", ["x", "z"], ["y"])], [value("x", [2, 3]), value("z", [3, 4])], [value("y")]
            ),
            "both inputs are activations",
        ),
        (
            make_model([h.make_node("MatMul", ["v", "w"], ["y"])], [], [value("y")], {"v": W, "w": W}),
            "both inputs are constant: fold constants first",
        ),
        (model_of((2, 3, 4), weight(2, 4, 5)), "weight of shape [2, 4, 5] is a batch of different matrices"),
        (model_of((3, 4), weight(4)), "weight has shape [4], expected a matrix"),
        (model_of((3, 4), weight(4, 1)), "its matrices are 4 x 1: factors wouldn't be smaller at any rank"),
        (
            model_of((4,), weight(1, 3, 4), on_the_right=False),
            "weight of shape [1, 3, 4] on the left of a vector",
        ),
        (
            model_of((4, 2), weight(1, 3, 4), on_the_right=False, known=False),
            "weight of shape [1, 3, 4] on the left of an activation whose number of dimensions isn't known",
        ),
        (
            make_model([h.make_node("MatMul", ["x", "w"], ["y"], axis=1)], [value("x")], [value("y")], {"w": W}),
            "attribute 'axis' isn't one that this operator is known to have",
        ),
        (
            make_model([h.make_node("MatMul", ["x"], ["y"])], [value("x")], [value("y")]),
            "it has inputs ['x'], MatMul takes 2",
        ),
        (
            make_model([h.make_node("MatMul", ["x", "w"], ["y", "y2"])], [value("x")], [value("y")], {"w": W}),
            "it has outputs ['y', 'y2'], MatMul gives one",
        ),
    ],
)
def test_declines_with_its_reason(model: onnx.ModelProto, reason: str) -> None:
    assert reason_of(model) == reason


def test_constant_node_as_weight() -> None:
    model = make_model(
        [constant("w", weight(6, 5)), h.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [3, 6])],
        [value("y", [3, 5])],
    )
    outcome = compress(model)
    assert outcome.sites[0].weight.storage == "constant"
    assert [node.op_type for node in outcome.model.graph.node] == ["MatMul", "MatMul"]
    assert_same(model, outcome.model, {"x": weight(3, 6, seed=1)}, tolerance=1e-5)


def test_ones_stay_on_the_left_factor_alone() -> None:
    outcome = compress(model_of((6,), weight(1, 1, 6, 5)), lambda site: choose(site, 2).rank)
    assert [new.shape for new in outcome.result.new_tensors] == [(1, 1, 6, 2), (2, 5)]
