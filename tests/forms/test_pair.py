from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.config import FORM_NAMES
from lowrank_onnx.forms import (
    CONV_CHANNEL,
    CONV_TRANSPOSE_CHANNEL,
    EMBEDDING,
    PAIR,
    PIVOTED,
    TIED,
    ConvGeometry,
    ConvInput,
    ConvSpatial,
    ConvTucker,
    Shared,
)
from lowrank_onnx.types import MatrixShape

SIDES = st.integers(1, 300)


@given(st.integers(1, 8), SIDES, SIDES)
def test_largest_useful_rank_is_the_last_that_saves(groups: int, in_features: int, out_features: int) -> None:
    shape = MatrixShape(groups, in_features, out_features)
    rank = PAIR.largest_useful_rank(shape)
    assert rank == 0 or PAIR.parameters(shape, rank) < shape.parameters
    assert PAIR.parameters(shape, rank + 1) >= shape.parameters


def test_figures_of_one_shape() -> None:
    shape = MatrixShape(groups=2, in_features=96, out_features=64)
    assert PAIR.part_shapes(shape, 10) == {"left": (2, 96, 10), "right": (2, 10, 64)}
    assert PAIR.parameters(shape, 10) == 2 * 10 * (96 + 64)
    assert PAIR.macs(shape, 10, positions=7) == 7 * PAIR.parameters(shape, 10)
    assert (PAIR.largest_useful_rank(shape), PAIR.largest_rank(shape)) == (38, 64)


def test_it_stands_for_the_product() -> None:
    left, right = np.ones((2, 3, 1)), np.arange(8.0).reshape(2, 1, 4)
    parts = {"left": left, "right": right}
    for form in (PAIR, Shared("q", True, 2, 8)):
        np.testing.assert_array_equal(form.approximate(parts), left @ right)
        np.testing.assert_array_equal(np.matmul(*form.factors(parts)), left @ right)


def test_a_single_row_or_column_has_no_useful_rank() -> None:
    assert PAIR.largest_useful_rank(MatrixShape(1, 1, 50)) == 0


def test_every_form_is_offered_to_users_by_its_name() -> None:
    geometry = ConvGeometry(4, (3, 3), ((1, 1), (1, 1)))
    chains = (ConvSpatial(geometry, 0), ConvInput(geometry), ConvTucker(geometry))
    forms = (PAIR, CONV_CHANNEL, CONV_TRANSPOSE_CHANNEL, PIVOTED, *chains, Shared("q", True, 2, 8), EMBEDDING, TIED)
    assert [form.name for form in forms] == list(FORM_NAMES)
