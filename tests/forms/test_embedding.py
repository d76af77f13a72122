from __future__ import annotations

from lowrank_onnx.forms import EMBEDDING, PAIR
from lowrank_onnx.types import MatrixShape

SHAPE = MatrixShape(groups=1, in_features=1000, out_features=64)


def test_it_stores_a_pair_and_multiplies_by_its_second_factor_alone() -> None:
    assert EMBEDDING.part_shapes(SHAPE, 10) == PAIR.part_shapes(SHAPE, 10)
    assert EMBEDDING.largest_useful_rank(SHAPE) == PAIR.largest_useful_rank(SHAPE)
    assert EMBEDDING.macs(SHAPE, 10, positions=7) == 7 * 10 * 64


def test_a_lookup_multiplies_nothing() -> None:
    assert EMBEDDING.dense_macs(SHAPE, positions=7) == 0
    assert PAIR.dense_macs(SHAPE, positions=7) == 7 * 1000 * 64
