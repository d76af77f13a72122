from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.forms import PAIR, PIVOTED, Pivoted
from lowrank_onnx.forms.pivoted import LEAST_SAVING
from lowrank_onnx.types import MatrixShape

SIDES = st.integers(2, 300)


@given(SIDES, SIDES, st.data())
def test_it_is_smaller_than_the_pair_and_than_dense_at_every_rank(
    in_features: int, out_features: int, data: st.DataObject
) -> None:
    shape = MatrixShape(1, in_features, out_features)
    rank = data.draw(st.integers(1, PIVOTED.largest_useful_rank(shape)))
    form = Pivoted(data.draw(st.integers(0, out_features - rank)))
    assert form.parameters(shape, rank) == rank * (in_features + out_features - rank)
    assert form.parameters(shape, rank) < min(shape.parameters, PAIR.parameters(shape, rank))


def test_at_the_smaller_side_it_is_as_large_as_dense() -> None:
    shape = MatrixShape(1, 30, 20)
    assert PIVOTED.parameters(shape, 20) == shape.parameters


@given(SIDES, SIDES)
def test_the_largest_useful_rank_is_the_last_that_saves_enough(in_features: int, out_features: int) -> None:
    shape = MatrixShape(1, in_features, out_features)
    saved = [shape.parameters - PIVOTED.parameters(shape, rank) for rank in range(1, shape.max_rank + 1)]
    assert PIVOTED.largest_useful_rank(shape) == sum(one >= LEAST_SAVING * shape.parameters for one in saved)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, {"left": (1, 9, 3), "after": (1, 3, 4)}),
        (4, {"left": (1, 9, 3), "before": (1, 3, 4)}),
        (1, {"left": (1, 9, 3), "before": (1, 3, 1), "after": (1, 3, 3)}),
    ],
)
def test_parts_are_where_they_are_not_empty(start: int, expected: dict[str, tuple[int, ...]]) -> None:
    assert Pivoted(start).part_shapes(MatrixShape(1, 9, 7), 3) == expected


@pytest.mark.parametrize("start", [0, 1, 4])
def test_bias_and_matrix_are_those_of_concatenated_outputs(start: int) -> None:
    generator = np.random.default_rng(start)
    form = Pivoted(start)
    parts = {part: generator.standard_normal(dims) for part, dims in form.part_shapes(MatrixShape(1, 9, 7), 3).items()}
    x, bias = generator.standard_normal((5, 9)), generator.standard_normal(7)
    pivots = x @ parts["left"][0] + form.write_bias("bias", bias, parts)
    blocks = [pivots]
    if "before" in parts:
        blocks.insert(0, pivots @ parts["before"][0] + form.write_bias("bias_before", bias, parts))
    if "after" in parts:
        blocks.append(pivots @ parts["after"][0] + form.write_bias("bias_after", bias, parts))
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), x @ form.approximate(parts)[0] + bias, atol=1e-12)


@pytest.mark.parametrize("order", [(), (6, 0, 5, 1, 4, 2, 3)])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_its_factors_make_its_matrix(start: int, order: tuple[int, ...]) -> None:
    generator = np.random.default_rng(start)
    form = Pivoted(start, order)
    parts = {part: generator.standard_normal(dims) for part, dims in form.part_shapes(MatrixShape(1, 9, 7), 3).items()}
    np.testing.assert_allclose(np.matmul(*form.factors(parts)), form.approximate(parts), atol=1e-12)


def test_a_form_that_adds_the_bias_as_it_is_writes_none() -> None:
    with pytest.raises(ValueError, match="form pair adds the bias as it is: it has no 'bias'"):
        PAIR.write_bias("bias", np.zeros(3), {})
