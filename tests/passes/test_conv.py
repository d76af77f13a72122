from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.forms import CONV_CHANNEL, PAIR, PIVOTED
from lowrank_onnx.types import Array, rearrange
from tests.passes.models import (
    assert_same,
    compress,
    constant,
    make_model,
    reason_of,
    run_ort,
    run_reference,
    sites_of,
    value,
    weight,
)


def model_of(
    w: Array, x_shape: tuple[int, ...], *, bias: Array | None = None, empty_bias: bool = False, **attributes: Any
) -> onnx.ModelProto:
    data_type = h.np_dtype_to_tensor_dtype(w.dtype)
    inputs = ["x", "w", *(["b"] if bias is not None else []), *([""] if empty_bias else [])]
    return make_model(
        [h.make_node("Conv", inputs, ["y"], name="conv", **attributes)],
        [value("x", x_shape, data_type)],
        [value("y", [None] * w.ndim, data_type)],
        {"w": w} | ({"b": bias} if bias is not None else {}),
    )


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    """A legal Conv of 1 to 3 spatial dimensions with any of its attributes, and an input for it."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(2 if groups > 1 else 1, 3))
    outputs = groups * draw(st.integers(2, 4))

    def per_axis(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))

    kernel, strides, dilations = per_axis(1, 3), per_axis(1, 3), per_axis(1, 2)
    attributes: dict[str, Any] = {}
    if groups > 1 or draw(st.booleans()):
        attributes["group"] = groups
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if draw(st.booleans()):
        attributes["strides"] = strides
    auto_pad = draw(st.sampled_from([None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto_pad is not None:
        attributes["auto_pad"] = auto_pad
    if auto_pad in (None, "NOTSET") and draw(st.booleans()):
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial))
    # onnxruntime doesn't take dilations together with SAME padding.
    if auto_pad in (None, "NOTSET", "VALID") and draw(st.booleans()):
        attributes["dilations"] = dilations
    size = 1 + 2 * max(kernel) + draw(st.integers(0, 2))
    w = weight(outputs, channels // groups, *kernel)
    assume(min(math.prod(w.shape[1:]), outputs // groups) > 1)
    bias = weight(outputs, seed=2) if draw(st.booleans()) else None
    shape = (draw(st.integers(1, 2)), channels, *(size + axis for axis in range(spatial)))
    return model_of(w, shape, bias=bias, **attributes), weight(*shape, seed=1)


@settings(max_examples=120, deadline=None)
@given(convolutions())
def test_exact_at_full_rank(case: tuple[onnx.ModelProto, Array]) -> None:
    model, x = case
    outcome = compress(model)
    (site,) = outcome.sites
    shape = site.weight.shape
    assert site.forms[0] == (PAIR if math.prod(shape[2:]) == 1 else CONV_CHANNEL)
    assert (PIVOTED in site.forms) == (site.shape.groups == 1)
    assert site.shape.in_features == math.prod(shape[1:])
    assert site.shape.groups * site.shape.out_features == shape[0] == site.counted_features
    assert (site.input, site.output, site.counted) == ("x", "y", "y")
    assert_same(model, outcome.model, {"x": x}, tolerance=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("float64", 1e-12)])
@pytest.mark.parametrize("groups", [1, 2])
def test_other_dtypes(dtype: str, tolerance: float, groups: int) -> None:
    w, x = weight(4, 4 // groups, 3, 3, dtype=dtype), weight(2, 4, 6, 5, seed=1, dtype=dtype)
    model = model_of(w, x.shape, bias=weight(4, seed=2, dtype=dtype), group=groups, pads=[1, 0, 1, 2], strides=[2, 1])
    outcome = compress(model)
    assert {new.dtype for new in outcome.result.new_tensors} == {dtype}
    assert_same(model, outcome.model, {"x": x}, tolerance=tolerance, run=run_reference)


def test_each_group_is_rearranged_to_its_patch_matrix() -> None:
    w = weight(6, 2, 3, 3)
    (site,) = sites_of(model_of(w, (1, 4, 5, 5), group=2))
    matrices = rearrange(w, site.to_matrices)
    assert matrices.shape == (2, 18, 3)
    for group in range(2):
        np.testing.assert_array_equal(matrices[group], w[3 * group : 3 * group + 3].reshape(3, 18).T)


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_truncated_rank_stays_below_the_next_singular_value(rank: int) -> None:
    """One position per patch (no padding): the patches and the outputs are matrices, and the spectral bound holds."""
    w, x = weight(12, 3, 2, 2), weight(1, 3, 6, 6, seed=1)
    model = model_of(w, x.shape, strides=[2, 2])
    (y,), (z,) = run_ort(model, {"x": x}), run_ort(compress(model, lambda site: rank).model, {"x": x})
    following = np.linalg.svd(w.reshape(12, -1), compute_uv=False)[rank]
    patches = x.reshape(3, 3, 2, 3, 2).transpose(1, 3, 0, 2, 4).reshape(9, 12)
    error = np.linalg.norm((y - z).reshape(12, 9), 2)
    assert 0 < error <= np.linalg.norm(patches, 2) * following * (1 + 1e-4)


def test_attributes_go_where_they_belong() -> None:
    model = model_of(
        weight(4, 2, 3, 5), (1, 4, 9, 9), bias=weight(4), group=2, pads=[1, 2, 0, 1], strides=[2, 1], dilations=[1, 2]
    )
    outcome = compress(model, lambda site: 1)
    first, last = outcome.model.graph.node
    assert {a.name: h.get_attribute_value(a) for a in first.attribute} == {
        "group": 2,
        "pads": [1, 2, 0, 1],
        "strides": [2, 1],
        "dilations": [1, 2],
    }
    assert {a.name: h.get_attribute_value(a) for a in last.attribute} == {"group": 2, "kernel_shape": [1, 1]}
    assert (list(first.input), list(last.input)) == (["x", "w.left"], ["y.mid", "w.right", "b"])
    assert [new.shape for new in outcome.result.new_tensors] == [(2, 2, 3, 5), (4, 1, 1, 1)]


def test_an_omitted_bias_stays_omitted() -> None:
    model = model_of(weight(4, 3, 3), (1, 3, 8), empty_bias=True)
    assert_same(model, compress(model).model, {"x": weight(1, 3, 8, seed=1)}, tolerance=1e-5)


def test_an_empty_list_is_not_carried_over() -> None:
    """It says nothing, and onnx can't tell its kind when it is made anew."""
    model = model_of(weight(4, 3, 3), (1, 3, 8), strides=[2])
    model.graph.node[0].attribute.add(name="output_shape", type=onnx.AttributeProto.INTS)
    model.graph.node[0].op_type = "ConvTranspose"
    model.graph.node[0].input[1] = "v"
    model.graph.initializer[0].name = "v"
    model.graph.initializer[0].dims[:] = [3, 4, 3]
    _, last = compress(model, lambda site: 2).model.graph.node
    assert [attribute.name for attribute in last.attribute] == ["strides"]


def test_group_from_a_constant_node_and_a_single_input_channel() -> None:
    """One input channel in one group is an ordinary convolution, not a depthwise one."""
    model = make_model(
        [constant("w", weight(8, 1, 3, 3)), h.make_node("Conv", ["x", "w"], ["y"])],
        [value("x", [1, 1, 6, 6])],
        [value("y", [1, 8, 4, 4])],
    )
    outcome = compress(model)
    assert outcome.sites[0].shape.in_features == 9
    assert_same(model, outcome.model, {"x": weight(1, 1, 6, 6, seed=1)}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("x_dims", "y_dims", "expected"),
    [
        (("n", 4, 8, 8), ("n", 6, "h", 6), ("n", 4, "h", 6)),
        (("n", 4, 8, 8), None, ("n", 4, 0, 0)),
        (None, None, (0, 4, 0, 0)),
    ],
)
def test_mid_states_what_is_known_of_its_shape(
    x_dims: tuple[int | str, ...] | None, y_dims: tuple[int | str, ...] | None, expected: tuple[int | str, ...]
) -> None:
    model = make_model(
        [
            h.make_node("Identity", ["input"], ["x"]),
            h.make_node("Conv", ["x", "w"], ["y"], group=2),
            h.make_node("Identity", ["y"], ["output"]),
        ],
        [value("input", [1, 4, 8, 8])],
        [value("output", [None] * 4)],
        {"w": weight(6, 2, 3, 3)},
        value_info=[value(name, dims) for name, dims in (("x", x_dims), ("y", y_dims)) if dims is not None],
    )
    mid = compress(model, lambda site: 2).model.graph.value_info[-1]
    assert mid.name == "y.mid"
    assert tuple(d.dim_param or d.dim_value for d in mid.type.tensor_type.shape.dim) == expected


@pytest.mark.parametrize(
    ("w", "attributes", "reason"),
    [
        (weight(4, 1, 3, 3), {"group": 4}, "depthwise: 4 groups of one input channel"),
        (weight(8, 1, 3, 3), {"group": 4}, "depthwise: 4 groups of one input channel"),
        (weight(4, 2, 3, 3), {"group": 4}, "its matrices are 18 x 1: factors wouldn't be smaller at any rank"),
        (weight(4, 2, 3, 3), {"group": 3}, "group is 3, which doesn't divide the 4 output channels"),
        (weight(4, 2, 3, 3), {"group": 0}, "group is 0, expected at least 1"),
        (weight(4, 2), {}, "weight has shape [4, 2], expected at least 3 dimensions"),
        (
            weight(4, 2, 3, 3),
            {"kernel_shape": [3, 2]},
            "kernel_shape [3, 2] contradicts the weight's shape [4, 2, 3, 3]",
        ),
        (
            weight(4, 2, 3, 3),
            {"auto_pad": "SAME"},
            "auto_pad is 'SAME', expected one of NOTSET, VALID, SAME_UPPER, SAME_LOWER",
        ),
        (
            weight(4, 2, 3, 3),
            {"auto_pad": b"\xff"},
            "auto_pad is '\\xff', expected one of NOTSET, VALID, SAME_UPPER, SAME_LOWER",
        ),
        (
            weight(4, 2, 3, 3),
            {"activation": "Relu"},
            "attribute 'activation' isn't one that this operator is known to have",
        ),
        (weight(4, 0, 3, 3), {}, "weight 'w' has shape [4, 0, 3, 3]: a dimension of size 0 or less"),
    ],
)
def test_declines_with_its_reason(w: Array, attributes: dict[str, Any], reason: str) -> None:
    assert reason_of(model_of(w, (1, 4, 8, 8), **attributes)) == reason


def test_declines_without_a_stored_weight() -> None:
    computed = make_model(
        [h.make_node("Relu", ["k"], ["w"], name="relu"), h.make_node("Conv", ["x", "w"], ["y"])],
        [value("x"), value("k")],
        [value("y")],
    )
    assert reason_of(computed) == "weight is computed at run time (produced by 'relu' (Relu))"
    given_twice = make_model(
        [h.make_node("Conv", ["v", "w"], ["y"])], [], [value("y")], {"v": weight(1, 2, 4, 4), "w": weight(3, 2, 3, 3)}
    )
    assert reason_of(given_twice) == "both inputs are constant: fold constants first"
