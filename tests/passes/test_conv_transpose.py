from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.types import Array, rearrange
from tests.passes.models import assert_same, compress, make_model, reason_of, sites_of, value, weight


def model_of(w: Array, x_shape: tuple[int, ...], *, bias: Array | None = None, **attributes: Any) -> onnx.ModelProto:
    inputs = ["x", "w", *(["b"] if bias is not None else [])]
    return make_model(
        [h.make_node("ConvTranspose", inputs, ["y"], name="up", **attributes)],
        [value("x", x_shape)],
        [value("y", [None] * w.ndim)],
        {"w": w} | ({"b": bias} if bias is not None else {}),
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    """A legal ConvTranspose of 1 to 3 spatial dimensions with any of its attributes, and an input for it."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(2, 4))
    per_group = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))

    kernel, strides, sizes = per_axis(1, 3), per_axis(1, 3), per_axis(2, 4)
    assume(per_group * math.prod(kernel) > 1)
    attributes: dict[str, Any] = {"strides": strides}
    if groups > 1 or draw(st.booleans()):
        attributes["group"] = groups
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    padding = draw(st.sampled_from(["none", "pads", "VALID", "SAME_UPPER", "SAME_LOWER", "output_shape"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, (k - 1) // 2)) for k in [*kernel, *kernel]]
    elif padding == "output_shape":
        attributes["output_shape"] = [s * (n - 1) + k for s, n, k in zip(strides, sizes, kernel, strict=True)]
    elif padding != "none":
        attributes["auto_pad"] = padding
    if padding in ("none", "pads"):
        if draw(st.booleans()):
            attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
        if draw(st.booleans()):
            attributes["dilations"] = per_axis(1, 2)
    bias = weight(groups * per_group, seed=2) if draw(st.booleans()) else None
    shape = (draw(st.integers(1, 2)), channels, *sizes)
    return model_of(weight(channels, per_group, *kernel), shape, bias=bias, **attributes), weight(*shape, seed=1)


@settings(max_examples=100, deadline=None)
@given(transposed_convolutions())
def test_exact_at_full_rank(case: tuple[onnx.ModelProto, Array]) -> None:
    model, x = case
    outcome = compress(model)
    (site,) = outcome.sites
    shape = site.weight.shape
    assert [form.name for form in site.forms] == ["conv_transpose_channel"]
    assert site.shape.groups * site.shape.in_features == shape[0] == site.counted_features
    assert site.shape.out_features == math.prod(shape[1:])
    assert (site.input, site.output, site.counted) == ("x", "y", "x")
    assert_same(model, outcome.model, {"x": x}, tolerance=1e-5)


def test_each_group_is_rearranged_to_its_scatter_matrix() -> None:
    w = weight(6, 2, 3, 3)
    (site,) = sites_of(model_of(w, (1, 6, 5, 5), group=2))
    matrices = rearrange(w, site.to_matrices)
    assert matrices.shape == (2, 3, 18)
    for group in range(2):
        np.testing.assert_array_equal(matrices[group], w[3 * group : 3 * group + 3].reshape(3, 18))


def test_attributes_and_bias_go_to_the_last_node() -> None:
    spatial: dict[str, Any] = {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 1]}
    outcome = compress(model_of(weight(4, 3, 3, 3), (1, 4, 5, 5), bias=weight(6), **spatial), lambda site: 1)
    first, last = outcome.model.graph.node
    assert (first.op_type, last.op_type) == ("Conv", "ConvTranspose")
    assert {a.name: h.get_attribute_value(a) for a in first.attribute} == {"group": 2, "kernel_shape": [1, 1]}
    assert {a.name: h.get_attribute_value(a) for a in last.attribute} == spatial
    assert (list(first.input), list(last.input)) == (["x", "w.left"], ["y.mid", "w.right", "b"])
    assert [new.shape for new in outcome.result.new_tensors] == [(2, 2, 1, 1), (2, 3, 3, 3)]
    (mid,) = outcome.model.graph.value_info
    assert [d.dim_value for d in mid.type.tensor_type.shape.dim] == [1, 2, 5, 5]


def test_mid_of_an_unknown_input_has_its_channels() -> None:
    model = model_of(weight(4, 3, 3, 3), (1, 4, 5, 5))
    model.graph.node[0].input[0] = "hidden"
    model.graph.node.insert(0, h.make_node("Identity", ["x"], ["hidden"]))
    mid = compress(model, lambda site: 3).model.graph.value_info[-1]
    assert [d.dim_value for d in mid.type.tensor_type.shape.dim] == [0, 3, 0, 0]


@pytest.mark.parametrize(
    ("w", "attributes", "reason"),
    [
        (weight(4, 3, 3, 3), {"group": 4}, "depthwise: 4 groups of one input channel"),
        (weight(4, 3, 3, 3), {"group": 3}, "group is 3, which doesn't divide the 4 input channels"),
        (weight(4, 3, 3, 3), {"group": -1}, "group is -1, expected at least 1"),
        (weight(1, 3, 3, 3), {}, "its matrices are 1 x 27: factors wouldn't be smaller at any rank"),
        (weight(4, 3), {}, "weight has shape [4, 3], expected at least 3 dimensions"),
        (weight(4, 3, 3), {"kernel_shape": [2]}, "kernel_shape [2] contradicts the weight's shape [4, 3, 3]"),
        (weight(4, 3, 3), {"dilation": [2]}, "attribute 'dilation' isn't one that this operator is known to have"),
    ],
)
def test_declines_with_its_reason(w: Array, attributes: dict[str, Any], reason: str) -> None:
    assert reason_of(model_of(w, (1, 4, 8, 8), **attributes)) == reason
