from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.forms import PAIR
from lowrank_onnx.types import Array, rearrange
from tests.passes.models import (
    assert_same,
    compress,
    make_model,
    reason_of,
    run_ort,
    run_reference,
    sites_of,
    value,
    weight,
)

M, K, N = 5, 7, 6
INT32 = "int32 weight (can factorize float16, bfloat16, float32, float64)"


def model_of(
    *,
    trans_a: int | None = 0,
    trans_b: int | None = 0,
    weight_is_a: bool = False,
    bias: Array | None = None,
    dtype: str = "float32",
    opset: int = 17,
    **attributes: Any,
) -> tuple[onnx.ModelProto, Array]:
    """A Gemm of (M, K) by (K, N) with one stored operand, and a feed for the other."""
    flags: dict[str, Any] = {
        name: flag for name, flag in (("transA", trans_a), ("transB", trans_b)) if flag is not None
    }
    a = weight(*((K, M) if trans_a else (M, K)), dtype=dtype)
    b = weight(*((N, K) if trans_b else (K, N)), seed=1, dtype=dtype)
    stored, x = (a, b) if weight_is_a else (b, a)
    data_type = h.np_dtype_to_tensor_dtype(stored.dtype)
    weights = {"w": stored} | ({"c": bias} if bias is not None else {})
    inputs = (["w", "x"] if weight_is_a else ["x", "w"]) + (["c"] if bias is not None else [])
    model = make_model(
        [h.make_node("Gemm", inputs, ["y"], name="fc", **flags, **attributes)],
        [value("x", x.shape, data_type)],
        [value("y", [M, N], data_type)],
        weights,
        opset=opset,
    )
    return model, x


@settings(max_examples=80, deadline=None)
@given(
    trans_a=st.sampled_from([None, 0, 1]),
    trans_b=st.sampled_from([None, 0, 1]),
    weight_is_a=st.booleans(),
    alpha=st.sampled_from([None, 0.0, 1.0, -2.5, 0.3]),
    beta=st.sampled_from([None, 0.0, 1.0, 3.25]),
    bias_shape=st.sampled_from([None, (), (1,), (N,), (1, N), (M, 1), (M, N), (1, 1)]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_exact_at_full_rank(
    trans_a: int | None,
    trans_b: int | None,
    weight_is_a: bool,
    alpha: float | None,
    beta: float | None,
    bias_shape: tuple[int, ...] | None,
    dtype: str,
) -> None:
    scale: dict[str, Any] = {name: number for name, number in (("alpha", alpha), ("beta", beta)) if number is not None}
    bias = None if bias_shape is None else np.asarray(weight(*bias_shape, seed=2), dtype)
    model, x = model_of(trans_a=trans_a, trans_b=trans_b, weight_is_a=weight_is_a, bias=bias, dtype=dtype, **scale)
    outcome = compress(model)
    (site,) = outcome.sites
    in_features, out_features = (K, M) if weight_is_a else (K, N)
    assert (site.shape.groups, site.shape.in_features, site.shape.out_features) == (1, in_features, out_features)
    assert (site.forms[0], site.input, site.counted, site.counted_features) == (PAIR, "x", "y", out_features)
    assert_same(model, outcome.model, {"x": x}, tolerance=2e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("weight_is_a", [False, True])
def test_float16_is_close_at_full_rank(trans_a: int, trans_b: int, weight_is_a: bool) -> None:
    bias = weight(1, N, seed=2, dtype="float16")
    model, x = model_of(trans_a=trans_a, trans_b=trans_b, weight_is_a=weight_is_a, bias=bias, dtype="float16")
    assert_same(model, compress(model).model, {"x": x}, tolerance=5e-3, run=run_reference)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("weight_is_a", [False, True])
def test_matrices_are_the_weight_as_it_multiplies(trans_a: int, trans_b: int, weight_is_a: bool) -> None:
    model, x = model_of(trans_a=trans_a, trans_b=trans_b, weight_is_a=weight_is_a)
    (site,) = sites_of(model)
    stored = onnx.numpy_helper.to_array(model.graph.initializer[0])
    (matrix,) = rearrange(stored, site.to_matrices)
    (y,) = run_ort(model, {"x": x})
    if weight_is_a:
        expected = (x if not trans_b else x.T).T @ matrix
        np.testing.assert_allclose(expected.T, y, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose((x.T if trans_a else x) @ matrix, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight_is_a", [False, True])
def test_scales_and_bias_are_carried_by_the_last_node_alone(weight_is_a: bool) -> None:
    model, _ = model_of(trans_a=1, trans_b=1, weight_is_a=weight_is_a, bias=weight(N), alpha=0.5, beta=0.25)
    first, last = compress(model, lambda site: 2).model.graph.node
    assert (first.op_type, list(first.attribute)) == ("MatMul", [])
    kept = "transB" if weight_is_a else "transA"
    assert {a.name: h.get_attribute_value(a) for a in last.attribute} == {kept: 1, "alpha": 0.5, "beta": 0.25}
    assert (last.op_type, last.input[2]) == ("Gemm", "c")


@pytest.mark.parametrize("trans_a", [0, 1])
def test_the_broadcast_attribute_of_old_opsets_is_kept(trans_a: int) -> None:
    model, x = model_of(trans_a=trans_a, bias=weight(N, seed=2), broadcast=1, opset=6)
    model.ir_version = 3
    for stored in model.graph.initializer:
        model.graph.input.append(value(stored.name, stored.dims))
    outcome = compress(model)
    assert {a.name: a.i for a in outcome.model.graph.node[-1].attribute}["broadcast"] == 1
    assert [entry.name for entry in outcome.model.graph.input] == ["x", "c", "w.left", "w.right"]
    assert_same(model, outcome.model, {"x": x}, tolerance=1e-6, run=run_without_weights)


def run_without_weights(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    """onnxruntime has no kernel for Gemm below opset 7, which differs from opset 7 in `broadcast` alone."""
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version = 7
    for node in newer.graph.node:
        for position in reversed(range(len(node.attribute))):
            if node.attribute[position].name == "broadcast":
                del node.attribute[position]
    return run_ort(newer, feed)


@pytest.mark.parametrize(
    ("trans_a", "weight_is_a", "trans_b", "expected"),
    [(0, False, 0, ("batch", 2)), (1, False, 0, (2, "batch")), (0, True, 0, (2, "batch")), (0, True, 1, ("batch", 2))],
)
@pytest.mark.parametrize("from_output", [True, False])
def test_mid_states_rank_and_batch(
    trans_a: int, weight_is_a: bool, trans_b: int, expected: tuple[int | str, ...], from_output: bool
) -> None:
    model, _ = model_of(trans_a=trans_a, trans_b=trans_b, weight_is_a=weight_is_a)
    graph = model.graph
    if from_output:
        free = 0 if not weight_is_a else 1
        graph.output[0].type.tensor_type.shape.dim[free].dim_param = "batch"
    else:
        free = int(bool(trans_a)) if not weight_is_a else 1 - trans_b
        graph.input[0].type.tensor_type.shape.dim[free].dim_param = "batch"
        graph.node[0].output[0] = "hidden"
        graph.node.append(h.make_node("Identity", ["hidden"], ["y"]))
    (mid,) = compress(model, lambda site: 2).model.graph.value_info
    assert tuple(d.dim_param or d.dim_value for d in mid.type.tensor_type.shape.dim) == expected


def test_a_weight_that_is_also_the_bias_is_left_alone() -> None:
    model = make_model(
        [h.make_node("Gemm", ["x", "w", "w"], ["y"], name="fc")],
        [value("x", [3, 3])],
        [value("y", [3, 3])],
        {"w": weight(3, 3)},
    )
    assert reason_of(model) == "weight 'w' is also used by 'fc' (Gemm), which is not rewritten"


@pytest.mark.parametrize(
    ("inputs", "weights", "reason"),
    [
        (["x", "x"], {}, "both inputs are activations"),
        (["v", "w"], {"v": weight(3, 3), "w": weight(3, 3)}, "both inputs are constant: fold constants first"),
        (["x", "w"], {"w": weight(1, 3, 3)}, "weight has shape [1, 3, 3], expected a matrix"),
        (["x", "w"], {"w": weight(3, 1)}, "its matrices are 3 x 1: factors wouldn't be smaller at any rank"),
        (["w", "x"], {"w": np.ones((3, 3), np.int32)}, INT32),
        (["x", "w", "c", "d"], {"w": weight(3, 3)}, "it has inputs ['x', 'w', 'c', 'd'], Gemm takes 2 or 3"),
    ],
)
def test_declines_with_its_reason(inputs: list[str], weights: dict[str, Array], reason: str) -> None:
    model = make_model([h.make_node("Gemm", inputs, ["y"])], [value("x", [3, 3])], [value("y")], weights)
    assert reason_of(model) == reason


def test_an_attribute_of_the_wrong_kind_is_a_reason() -> None:
    model, _ = model_of(transC=1)
    assert reason_of(model) == "attribute 'transC' isn't one that this operator is known to have"
    model, _ = model_of(trans_a=None)
    model.graph.node[0].attribute.append(h.make_attribute("transA", 1.0))
    assert reason_of(model) == "attribute 'transA' has kind 1, expected INT"
    model, _ = model_of(trans_a=1)
    model.graph.node[0].attribute.append(h.make_attribute("transA", 0))
    assert reason_of(model) == "an attribute is given twice"
