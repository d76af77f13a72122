from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.gram import STRIPE
from lowrank_onnx.moments.moment import (
    ADVISED_ROWS_PER_FEATURE,
    BUFFERED_ROWS,
    Moment,
    MomentSum,
    advise_rows,
    effective_rank,
    estimate_condition,
    merge_moments,
    without_rows,
)
from lowrank_onnx.types import Array
from tests.moments.builders import exact_moment, whole_numbers


def moment_of_rows(rows: Array, *, weight: float = 1.0) -> Moment:
    """Rows (groups, n, in) as one feed."""
    total = MomentSum(rows.shape[0], rows.shape[2], np.float64 if rows.dtype == np.float64 else np.float32)
    start = 0
    while start < rows.shape[1]:
        chunk = rows[:, start : start + total.room]
        total.add(chunk, weight)
        start += chunk.shape[1]
    total.close_feed(round(rows.shape[1] * weight))
    return total.finish()


def diagonal(*values: float, rows: int = 100) -> Moment:
    return Moment(np.diag(np.array(values))[np.newaxis], np.zeros((1, len(values))), rows, rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 600), st.integers(1, 5))
def test_the_sum_does_not_depend_on_how_the_buffer_fills(groups: int, count: int, size: int) -> None:
    rows = whole_numbers(groups, count, size, seed=count)
    moment, (second, mean) = moment_of_rows(rows), exact_moment(rows)
    np.testing.assert_allclose(moment.second_moment, second, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(moment.mean, mean, rtol=1e-14, atol=1e-14)
    assert (moment.rows, moment.positions) == (count, count)
    np.testing.assert_array_equal(moment.second_moment, moment.second_moment.swapaxes(1, 2))
    assert moment.second_moment.dtype == moment.mean.dtype == np.float64


def test_large_moments_are_whole_too() -> None:
    """More features than one stripe of the product has, and more rows than the buffer."""
    rows = whole_numbers(2, STRIPE + 80, STRIPE + 50)
    moment, (second, _) = moment_of_rows(rows), exact_moment(rows)
    np.testing.assert_allclose(moment.second_moment, second, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(moment.second_moment, moment.second_moment.swapaxes(1, 2))


def test_a_sum_of_many_rows_keeps_the_digits_that_float32_loses() -> None:
    """2 * 10**6 rows of about 1: a float32 sum of their squares would be off by more than 1e-6."""
    rows = np.full((1, 2_000_000, 1), 1.0001, np.float32)
    expected = float(np.float64(np.float32(1.0001)) ** 2)
    assert abs(moment_of_rows(rows).second_moment[0, 0, 0] / expected - 1.0) < 2e-7


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32_are_kept(scale: float) -> None:
    rows = (whole_numbers(2, 40, 3) * scale).astype(np.float32)
    second, _ = exact_moment(rows)
    np.testing.assert_allclose(moment_of_rows(rows).second_moment, second, rtol=1e-12)


def test_float64_rows_are_multiplied_in_float64() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 50, 4))
    second, _ = exact_moment(rows)
    np.testing.assert_allclose(moment_of_rows(rows).second_moment, second, rtol=1e-12, atol=1e-14)


def test_rows_that_stand_for_others_count_so_often() -> None:
    few, many = whole_numbers(1, 10, 3), whole_numbers(1, 30, 3, seed=1)
    total = MomentSum(1, 3, np.float32)
    total.add(few, 1.0)
    total.close_feed(10)
    total.add(many[:, :15], 2.0)
    total.close_feed(30)
    moment = total.finish()
    second, mean = exact_moment(np.concatenate([few, many[:, :15], many[:, :15]], axis=1))
    np.testing.assert_allclose(moment.second_moment, second, rtol=1e-6)
    np.testing.assert_allclose(moment.mean, mean, rtol=1e-12, atol=1e-14)
    assert (moment.rows, moment.positions) == (25, 40)


def test_room_is_what_is_left_in_the_buffer() -> None:
    total = MomentSum(1, 2, np.float32)
    assert total.room == BUFFERED_ROWS
    total.add(whole_numbers(1, BUFFERED_ROWS - 1, 2), 1.0)
    assert total.room == 1
    total.add(whole_numbers(1, 1, 2), 1.0)
    assert total.room == BUFFERED_ROWS
    assert MomentSum(1, 2 * BUFFERED_ROWS, np.float32).room == 2 * BUFFERED_ROWS


def test_merged_moments_are_those_of_all_rows() -> None:
    first, second = whole_numbers(2, 10, 3), whole_numbers(2, 25, 3, seed=1)
    merged = merge_moments([moment_of_rows(first), moment_of_rows(second)])
    expected, mean = exact_moment(np.concatenate([first, second], axis=1))
    np.testing.assert_allclose(merged.second_moment, expected, rtol=1e-12)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-12, atol=1e-14)
    assert (merged.rows, merged.positions) == (35, 35)


def test_what_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match=r"^no moments to merge$"):
        merge_moments([])
    with pytest.raises(ValueError, match=r"shapes \[\(1, 2, 2\), \(1, 3, 3\)\] can't be merged"):
        merge_moments([diagonal(1.0, 1.0), diagonal(1.0, 1.0, 1.0)])
    alone = diagonal(1.0, 2.0)
    assert merge_moments([alone]) is alone


@pytest.mark.parametrize(
    ("values", "rank"), [((1.0, 1.0, 1.0, 1.0), 4.0), ((5.0, 5.0, 0.0), 2.0), ((0.0, 0.0), 0.0), ((3.0, 1.0), 1.6)]
)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_effective_rank(values: tuple[float, ...], rank: float, scale: float) -> None:
    assert effective_rank(diagonal(*(scale * value for value in values))) == pytest.approx(rank, rel=1e-12)


def test_effective_rank_is_a_mean_over_the_groups() -> None:
    matrices = np.stack([np.eye(3), np.diag([1.0, 0.0, 0.0])])
    assert effective_rank(Moment(matrices, np.zeros((2, 3)), 9, 9)) == pytest.approx(2.0)


def test_condition_of_well_and_badly_conditioned_moments() -> None:
    assert estimate_condition(diagonal(1.0, 1.0, 1.0)) == pytest.approx(1.0)
    assert estimate_condition(diagonal(4.0, 1e-6, 2.0)) == pytest.approx(4e6)
    assert estimate_condition(diagonal(1.0, 0.0)) == math.inf
    assert estimate_condition(diagonal(0.0, 0.0)) == math.inf
    assert estimate_condition(diagonal(1.0, 1e-17)) == math.inf


def test_condition_estimate_is_below_the_condition_number_and_mostly_near_it() -> None:
    shares = []
    for seed in range(100):
        rows = np.random.default_rng(seed).standard_normal((1, 40, 2 + seed % 20))
        moment = moment_of_rows(rows)
        shares.append(estimate_condition(moment) / float(np.linalg.cond(moment.second_moment[0], 1)))
    assert max(shares) <= 1.0 + 1e-9
    assert sorted(shares)[10] >= 0.5


def test_fewer_rows_than_features_are_singular_and_finite() -> None:
    moment = moment_of_rows(np.random.default_rng(0).standard_normal((1, 8, 40)))
    assert np.isfinite(moment.second_moment).all()
    assert np.linalg.matrix_rank(moment.second_moment[0]) == 8
    assert estimate_condition(moment) > 1e12
    assert 1.0 <= effective_rank(moment) <= 8.0


def test_advice() -> None:
    def seen(rows: int, positions: int, features: int) -> Moment:
        return Moment(np.zeros((1, features, features)), np.zeros((1, features)), rows, positions)

    assert ADVISED_ROWS_PER_FEATURE == 4
    assert advise_rows(seen(64, 64, 1536)) == (
        "input of 1536 features seen at only 64 rows: give about 96 times as many samples"
    )
    assert advise_rows(seen(1, 1, 2)) == "input of 2 features seen at only 1 row: give about 8 times as many samples"
    assert advise_rows(seen(10, 1000, 20)) == "input of 20 features seen at only 10 rows of 1000: let 80 rows go in"
    assert advise_rows(seen(79, 79, 20)) is not None
    assert advise_rows(seen(80, 80, 20)) is None


def test_rows_of_no_part() -> None:
    rows = whole_numbers(2, 20, 3)
    whole, first, second, rest = (moment_of_rows(part) for part in (rows, rows[:, :4], rows[:, 4:9], rows[:, 9:]))
    found = without_rows(whole, [first, second])
    np.testing.assert_allclose(found.second_moment, rest.second_moment, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mean, rest.mean, rtol=1e-9, atol=1e-9)
    assert (found.rows, found.positions) == (11, 11)
    with pytest.raises(ValueError, match="2 parts with all of the 20 rows"):
        without_rows(whole, [first, moment_of_rows(rows[:, 4:])])
