"""The rows are the ones that the operator multiplies by its weight: y = X @ W is what onnxruntime computes."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.gather_rows import RowsError, count_rows, gather_rows
from lowrank_onnx.moments.row_layout import Columns, LastAxis, Patches, RowLayout, find_row_layout
from lowrank_onnx.types import Array, Site
from tests.moments.builders import (
    ConvCase,
    exact_moment,
    matrices_of,
    observe,
    one_operator,
    only_moment,
    whole_numbers,
)
from tests.passes.models import run_ort, sites_of


@st.composite
def conv_cases(draw: st.DrawFn, auto_pads: tuple[str, ...] = ("NOTSET", "NOTSET", "VALID")) -> ConvCase:
    dims = draw(st.integers(1, 3))
    auto_pad = draw(st.sampled_from(auto_pads))
    same = auto_pad.startswith("SAME")

    def tuple_of(low: int, high: int, count: int = dims) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    kernel = tuple_of(1, 3)
    dilations = (1,) * dims if same else tuple_of(1, 2)  # onnxruntime knows no dilation with SAME
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    return ConvCase(
        samples=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        channels=draw(st.integers(2, 3)),
        spatial=tuple(span + draw(st.integers(0, 3)) for span in spans),
        kernel=kernel,
        strides=tuple_of(1, 3),
        dilations=dilations,
        pads=tuple(draw(st.integers(0, span - 1)) for span in (*spans, *spans)),
        auto_pad=auto_pad,
        seed=draw(st.integers(0, 1000)),
    )


def layout_and_site(model: onnx.ModelProto) -> tuple[RowLayout, Site]:
    (site,) = sites_of(model)
    layout = find_row_layout(model, site)
    assert not isinstance(layout, str), layout
    return layout, site


def all_products(model: onnx.ModelProto, x: Array) -> Array:
    """X @ W (groups, rows, out) over all rows."""
    layout, site = layout_and_site(model)
    rows = gather_rows(layout, x, np.arange(count_rows(layout, x.shape)), np.float32)
    assert rows.shape[2] == site.shape.in_features
    return rows @ matrices_of(model, site)


@settings(max_examples=40, deadline=None)
@given(conv_cases())
def test_conv_moments_equal_those_of_all_patches(case: ConvCase) -> None:
    rows = case.all_rows()
    moment = only_moment(observe(case.model, [case.activation], max_rows=10**6))
    second, mean = exact_moment(rows)
    np.testing.assert_allclose(moment.second_moment, second, rtol=1e-14, atol=0)
    np.testing.assert_allclose(moment.mean, mean, rtol=1e-14, atol=1e-14)
    assert moment.rows == moment.positions == rows.shape[1]


@settings(max_examples=40, deadline=None)
@given(conv_cases(("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")))
def test_conv_rows_times_the_weight_are_the_output(case: ConvCase) -> None:
    (y,) = run_ort(case.model, {"x": case.activation})
    products = all_products(case.model, case.activation)
    found = products.reshape(case.groups, case.samples, -1, 2).transpose(1, 0, 3, 2).reshape(y.shape)
    np.testing.assert_array_equal(found, y)


@settings(max_examples=20, deadline=None)
@given(conv_cases(), st.data())
def test_some_rows_are_those_of_all(case: ConvCase, data: st.DataObject) -> None:
    layout, _ = layout_and_site(case.model)
    rows = case.all_rows()
    chosen = data.draw(st.lists(st.integers(0, rows.shape[1] - 1), min_size=1, max_size=6))
    chosen *= data.draw(st.sampled_from([1, 60]))  # few are picked one by one, of many the activation is laid out anew
    at_once = data.draw(st.sampled_from([1, 2**19]))
    with mock.patch("lowrank_onnx.moments.gather_rows.CACHED_BYTES", at_once):
        found = gather_rows(layout, case.activation, np.array(chosen), np.float64)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, rows[:, chosen])


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_matmul_with_the_weight_on_the_right(shape: tuple[int, ...]) -> None:
    model, x = one_operator("MatMul", whole_numbers(5, 3)), whole_numbers(*shape, seed=1)
    (y,) = run_ort(model, {"x": x})
    np.testing.assert_array_equal(all_products(model, x)[0].reshape(y.shape), y)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (2, 5, 3), (2, 2, 5, 3)])
def test_matmul_with_the_weight_on_the_left(shape: tuple[int, ...]) -> None:
    model, x = one_operator("MatMul", whole_numbers(4, 5), weight_slot=0), whole_numbers(*shape, seed=1)
    (y,) = run_ort(model, {"x": x})
    columns = shape[-1] if len(shape) > 1 else 1
    products = all_products(model, x)[0].reshape(-1, columns, 4).swapaxes(1, 2)
    np.testing.assert_array_equal(products.reshape(y.shape), y)


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("transpose_a", [0, 1])
@pytest.mark.parametrize("transpose_b", [0, 1])
def test_gemm_in_all_its_transpositions(slot: int, transpose_a: int, transpose_b: int) -> None:
    """A' is (3, 5) and B' is (5, 4), stored as transA and transB say."""
    operands = [
        whole_numbers(*((5, 3) if transpose_a else (3, 5))),
        whole_numbers(*((4, 5) if transpose_b else (5, 4))),
    ]
    attributes: dict[str, Any] = {"transA": transpose_a, "transB": transpose_b, "alpha": 2.0}
    model = one_operator("Gemm", operands[slot], weight_slot=slot, **attributes)
    x = operands[1 - slot]
    (y,) = run_ort(model, {"x": x})
    products = 2.0 * all_products(model, x)[0]
    np.testing.assert_array_equal(products if slot == 1 else products.T, y)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_conv_transpose_scatters_the_products(groups: int, kernel: int, stride: int, dilation: int, pad: int) -> None:
    samples, size, channels, out = 2, 4, 3, 2
    assume((size - 1) * stride + (kernel - 1) * dilation + 1 > 2 * pad)
    model = one_operator(
        "ConvTranspose",
        whole_numbers(groups * channels, out, kernel),
        group=groups,
        strides=[stride],
        dilations=[dilation],
        pads=[pad, pad],
    )
    x = whole_numbers(samples, groups * channels, size, seed=1)
    (y,) = run_ort(model, {"x": x})
    products = all_products(model, x).reshape(groups, samples, size, out, kernel)
    scattered = np.zeros((samples, groups, out, y.shape[2] + 2 * pad), np.float32)
    for at in range(size):
        for offset in range(kernel):
            scattered[..., at * stride + offset * dilation] += products[:, :, at, :, offset].swapaxes(0, 1)
    np.testing.assert_array_equal(scattered[..., pad : pad + y.shape[2]].reshape(y.shape), y)


@pytest.mark.parametrize(
    ("layout", "shape", "problem"),
    [
        (LastAxis(4), (2, 5), "has shape [2, 5], expected 4 on axis -1"),
        (LastAxis(4), (), "has shape [], expected 4 on axis -1"),
        (Columns(4), (4, 5, 3), "has shape [4, 5, 3], expected 4 on axis -2"),
        (Columns(4), (5,), "has shape [5], expected 4 on axis -1"),
        (
            Patches(2, 3, (3,), (1,), (1,), (0, 0), "NOTSET"),
            (1, 5, 9),
            "has shape [1, 5, 9], expected 3 dimensions with 6 channels",
        ),
        (
            Patches(2, 3, (3,), (1,), (2,), (1, 1), "NOTSET"),
            (1, 6, 2),
            "has shape [1, 6, 2], smaller than the kernel's 5 on axis 2",
        ),
        (
            Patches(1, 3, (3,), (1,), (1,), (2**50, 0), "NOTSET"),
            (1, 3, 3),
            f"has {2**50 + 1} positions once it is padded, expected at most {2**48}",
        ),
    ],
)
def test_activations_that_do_not_fit_are_refused(layout: RowLayout, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(RowsError, match=f"^{re.escape(problem)}$"):
        count_rows(layout, shape)
