from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.pass_plan import Wanted, plan_passes
from lowrank_onnx.moments.row_layout import Columns, LastAxis

ELEMENTS: Mapping[str, int] = {"a": 1000, "b": 50_000, "c": 10}


def wanted(tensor: str, size: int, dtype: str = "float32") -> Wanted:
    return Wanted(tensor, LastAxis(size), dtype, (f"{tensor}.{size}",))


def bytes_of(*items: Wanted) -> int:
    """Worked out anew: sums, means and buffers; each activation once; the largest workspace."""
    held = sum(
        8 * i.layout.in_features * (i.layout.in_features + 1)
        + max(i.layout.in_features, 256) * i.layout.in_features * (8 if i.dtype == "float64" else 4)
        for i in items
    )
    itemsizes = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
    activations = sum({i.tensor: ELEMENTS[i.tensor] * itemsizes[i.dtype] for i in items}.values())
    work = max(
        2 * max(i.layout.in_features, 256) * i.layout.in_features * 8 + 8 * i.layout.in_features**2 for i in items
    )
    return held + activations + work


def test_everything_fits_into_one_pass_that_is_just_large_enough() -> None:
    items = [wanted("a", 8), wanted("b", 16), wanted("c", 4, "float16")]
    assert plan_passes(items, ELEMENTS, bytes_of(*items)) == ((tuple(items),), {})
    passes, reasons = plan_passes(items, ELEMENTS, bytes_of(*items) - 1)
    assert passes == ((items[0], items[1]), (items[2],))
    assert reasons == {}


def test_moments_of_one_tensor_come_together() -> None:
    first, other = wanted("a", 8), wanted("b", 8)
    again = Wanted("a", Columns(4), "float32", ("columns",))
    assert plan_passes([first, other, again], ELEMENTS, 10**9)[0] == ((first, again, other),)


def test_what_does_not_fit_alone_gets_a_reason_with_the_sizes() -> None:
    small, large = wanted("a", 8), wanted("c", 300)
    limit = bytes_of(large) - 1
    passes, reasons = plan_passes([small, large], ELEMENTS, limit)
    assert passes == ((small,),)
    assert reasons == {
        large: f"its second moment of 1 x 300 x 300, with an activation of 10 elements, takes {limit + 1} bytes to "
        f"observe, more than the {limit} allowed"
    }
    assert plan_passes([small], ELEMENTS, 1)[0] == ()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 300)), unique=True, max_size=8),
    st.integers(10**4, 5 * 10**6),
)
def test_every_pass_keeps_to_the_limit_and_nothing_is_lost(pairs: list[tuple[str, int]], limit: int) -> None:
    items = [wanted(tensor, size) for tensor, size in pairs]
    passes, reasons = plan_passes(items, ELEMENTS, limit)
    assert all(bytes_of(*one) <= limit for one in passes)
    assert all(bytes_of(item) > limit for item in reasons)
    assert sorted(map(str, [*reasons, *(item for one in passes for item in one)])) == sorted(map(str, items))


@pytest.mark.parametrize(
    ("dtype", "buffer"),
    [("float16", np.float32), ("bfloat16", np.float32), ("float32", np.float32), ("float64", np.float64)],
)
def test_small_floats_are_collected_in_float32(dtype: str, buffer: type) -> None:
    assert wanted("a", 4, dtype).buffer_dtype is buffer
