from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.pivoted import (
    PROBES,
    PivotedFactors,
    draw_inputs,
    pivot_factors,
    rounding_of_pair,
    rounding_of_pivoted,
)
from lowrank_onnx.linalg.weighted import FLOOR
from lowrank_onnx.types import Array, numpy_dtype


def factors(rank: int, in_features: int, out_features: int, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((in_features, rank)), generator.standard_normal((rank, out_features))


def product(pivoted: PivotedFactors) -> Array:
    left = pivoted.left
    return np.concatenate((left @ pivoted.before, left, left @ pivoted.after), axis=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.data())
def test_any_block_of_independent_columns_gives_the_same_product(
    rank: int, more_in: int, more_out: int, data: st.DataObject
) -> None:
    left, right = factors(rank, rank + more_in, rank + more_out, data.draw(st.integers(0, 99)))
    start = data.draw(st.integers(0, more_out))
    pivoted = pivot_factors(left, right, start)
    assert pivoted is not None
    assert pivoted.before.shape == (rank, start)
    scale = float(np.linalg.norm(pivoted.left) * (1 + np.linalg.norm(pivoted.before) + np.linalg.norm(pivoted.after)))
    np.testing.assert_allclose(product(pivoted), left @ right, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_dependent_or_unsound_pivots_are_none(bad: float) -> None:
    left, right = factors(3, 5, 8)
    right[:, 1] = bad
    assert pivot_factors(left, right, 0) is None
    right = np.nan_to_num(right, posinf=1.0)
    assert pivot_factors(left, right, 4) is not None


@pytest.mark.parametrize("start", [-1, 6])
def test_pivots_outside_the_matrix_are_refused(start: int) -> None:
    with pytest.raises(FactorizationError, match=f"pivots from column {start} on: expected 0 to 5"):
        pivot_factors(*factors(3, 5, 8), start)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rounding_is_that_of_the_dtype_for_the_pair_and_grows_with_the_pivots_condition(dtype: str) -> None:
    unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}[dtype]
    left, right = factors(16, 64, 64)
    inputs = draw_inputs(64, None, 0)
    pair = rounding_of_pair(left, right, inputs, numpy_dtype(dtype))
    # In float64 the reference is computed in the same way, so that only the pivoted form differs from it.
    assert dtype == "float64" or unit / 8 < pair
    assert pair < 8 * unit
    ill = right.copy()
    ill[:, 15] = ill[:, 14] + 1e-2 * ill[:, 15]
    rounded = []
    for one in (right, ill):
        pivoted = pivot_factors(left, one, 0)
        assert pivoted is not None
        rounded.append(rounding_of_pivoted(left, one, pivoted, inputs, numpy_dtype(dtype)))
    assert pair < rounded[0] < rounded[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_pivot_that_is_small_beside_its_bias_rounds_what_it_takes_part_in(dtype: str) -> None:
    left, right = factors(16, 64, 64)
    right[:, 3] *= 1e-3
    inputs, kind = draw_inputs(64, None, 0), numpy_dtype(dtype)
    with_it, without_it = pivot_factors(left, right, 0), pivot_factors(left, right, 40)
    assert with_it is not None
    assert without_it is not None
    bias = np.where(np.arange(64) == 3, 50.0, 1.0)
    pair = rounding_of_pair(left, right, inputs, kind, bias)
    assert pair < 8 * rounding_of_pair(left, right, inputs, kind)
    assert rounding_of_pivoted(left, right, without_it, inputs, kind, bias) < 1e2 * pair
    alone = rounding_of_pivoted(left, right, with_it, inputs, kind)
    assert rounding_of_pivoted(left, right, with_it, inputs, kind, bias) > 10 * alone
    assert rounding_of_pivoted(left, right, with_it, inputs, kind, np.zeros(64)) == alone


def test_overflow_is_infinite_rounding() -> None:
    left, right = factors(4, 8, 8)
    pivoted = pivot_factors(left * 1e5, right, 0)
    assert pivoted is not None
    inputs = draw_inputs(8, None, 0)
    assert rounding_of_pivoted(left * 1e5, right, pivoted, inputs, numpy_dtype("float16")) == np.inf


def test_inputs_have_the_second_moment_asked_for() -> None:
    moment = np.diag([100.0, 1.0, 0.0])
    inputs = draw_inputs(3, moment, 0)
    assert inputs.shape == (PROBES, 3)
    many = np.concatenate([draw_inputs(3, moment, seed) for seed in range(40)])
    np.testing.assert_allclose(many.T @ many / len(many), moment, atol=10)
    assert np.abs(inputs[:, 2]).max() < 6 * np.sqrt(FLOOR * 101 / 3)  # what is never excited, but for the floor
    np.testing.assert_array_equal(inputs, draw_inputs(3, moment, 0))


def test_inputs_of_many_features_have_the_diagonal_and_the_leading_directions_of_the_moment() -> None:
    size, count = 400, 60
    generator = np.random.default_rng(0)
    leading = np.linalg.qr(generator.standard_normal((size, 3)))[0] * np.sqrt([4000.0, 2000.0, 1000.0])
    moment = leading @ leading.T + np.diag(generator.uniform(0.5, 2.0, size))
    drawn = np.concatenate([draw_inputs(size, moment, seed) for seed in range(count)])
    found = drawn.T @ drawn / len(drawn)
    np.testing.assert_allclose(np.diagonal(found), np.diagonal(moment), rtol=0.15)
    assert np.linalg.norm(found - moment, 2) < 0.1 * np.linalg.norm(moment, 2)
