from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.forms import PAIR, Shared
from lowrank_onnx.types import MatrixShape


@given(st.integers(2, 100), st.lists(st.integers(2, 100), min_size=2, max_size=4))
def test_a_bundle_weighs_what_the_pair_of_the_concatenated_weight_does(in_features: int, outs: list[int]) -> None:
    forms = [Shared("q", index == 0, len(outs), sum(outs)) for index in range(len(outs))]
    shapes = [MatrixShape(1, in_features, out) for out in outs]
    whole = MatrixShape(1, in_features, sum(outs))
    ranks = {form.largest_useful_rank(shape) for form, shape in zip(forms, shapes, strict=True)}
    assert ranks == {PAIR.largest_useful_rank(whole)}
    for rank in (1, 7):
        stored = [form.parameters(shape, rank) for form, shape in zip(forms, shapes, strict=True)]
        assert sum(stored) == PAIR.parameters(whole, rank)
        macs = [form.macs(shape, rank, 3) for form, shape in zip(forms, shapes, strict=True)]
        assert sum(macs) == PAIR.macs(whole, rank, 3)
    assert all(form.largest_rank(shape) == whole.max_rank for form, shape in zip(forms, shapes, strict=True))
