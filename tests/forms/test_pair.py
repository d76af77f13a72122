from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.forms import FORMS, pair
from lowrank_onnx.types import MatrixShape

sides = st.integers(1, 5000)


@given(sides, sides, st.integers(1, 8))
def test_largest_useful_rank_is_the_last_that_saves(in_features: int, out_features: int, groups: int) -> None:
    shape = MatrixShape(groups, in_features, out_features)
    rank = pair.largest_useful_rank(shape)
    assert rank == 0 or pair.parameters(shape, rank) < shape.parameters
    assert pair.parameters(shape, rank + 1) >= shape.parameters


def test_counts_of_a_known_layer() -> None:
    shape = MatrixShape(1, 768, 3072)
    assert pair.parameters(shape, 100) == 384_000
    assert pair.macs(shape, 100, positions=50) == 19_200_000
    assert pair.largest_useful_rank(shape) == 614


def test_empty_matrix_has_no_useful_rank() -> None:
    assert pair.largest_useful_rank(MatrixShape(1, 0, 10)) == 0


def test_every_form_is_registered() -> None:
    assert sorted(FORMS) == ["conv_channel", "conv_transpose_channel", "pair"]
