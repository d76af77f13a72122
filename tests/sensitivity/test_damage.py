from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.sensitivity.damage import Sensitivity, fit_importance, interpolate_error
from lowrank_onnx.types import WeightRef

REF = WeightRef((), "w", "initializer", "float32", (4, 4))

POSITIVE = st.floats(1e-12, 1e3)
POINTS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=5, unique_by=lambda point: point[0])
RISING = POINTS.map(
    lambda points: list(zip(sorted(p[0] for p in points), sorted(p[1] for p in points), strict=True)),
)


def sensitivity(*points: tuple[float, float]) -> Sensitivity:
    """Measured at these (tail, error)."""
    tails, errors = tuple(point[0] for point in points), tuple(point[1] for point in points)
    return Sensitivity(REF, tuple(range(len(points), 0, -1)), errors, tails, *fit_importance(tails, errors))


def test_the_importance_is_the_geometric_mean_of_the_ratios() -> None:
    importance, fits = fit_importance((0.1, 0.4), (0.2, 1.6))
    assert importance == pytest.approx(math.sqrt(2 * 4))
    assert fits
    assert fit_importance((0.25,), (0.5,)) == (2.0, True)


@pytest.mark.parametrize(("ratio", "fits"), [(3.99, True), (4.01, False)])
def test_the_model_fits_within_a_factor_of_two(ratio: float, fits: bool) -> None:
    assert fit_importance((0.1, 0.1), (1.0, ratio))[1] is fits
    assert fit_importance((0.1, 0.1), (ratio, 1.0))[1] is fits


def test_ranks_at_which_nothing_is_lost_do_not_count() -> None:
    assert fit_importance((0.0, 0.5), (1e-9, 0.5)) == (1.0, True)


def test_no_effect_at_all_is_an_importance_of_zero() -> None:
    assert fit_importance((0.1, 0.5), (0.0, 0.0)) == (0.0, True)


def test_no_effect_at_some_ranks_does_not_fit() -> None:
    assert fit_importance((0.1, 0.5), (0.0, 0.5)) == (1.0, False)


@pytest.mark.parametrize("errors", [(math.inf, 0.1), (0.1, math.inf)])
def test_an_infinite_error_is_an_infinite_importance(errors: tuple[float, float]) -> None:
    assert fit_importance((0.1, 0.5), errors) == (math.inf, False)


@given(RISING)
@settings(max_examples=100, deadline=None)
def test_measured_points_are_met_exactly(points: list[tuple[float, float]]) -> None:
    measured = sensitivity(*reversed(points))
    for tail, error in points:
        assert interpolate_error(measured, tail) == error


@given(POINTS, st.floats(0, 1e4), st.floats(0, 1e4))
@settings(max_examples=200, deadline=None)
def test_a_larger_tail_never_predicts_less(points: list[tuple[float, float]], one: float, other: float) -> None:
    measured = sensitivity(*points)
    low, high = (interpolate_error(measured, tail) for tail in sorted((one, other)))
    assert low <= high * (1 + 1e-12)


@given(POINTS)
@settings(max_examples=100, deadline=None)
def test_no_prediction_is_below_what_was_measured_at_that_tail(points: list[tuple[float, float]]) -> None:
    for tail, error in points:
        assert interpolate_error(sensitivity(*points), tail) >= error


@given(POSITIVE, POSITIVE, st.floats(0, 1e3))
@settings(max_examples=100, deadline=None)
def test_one_point_predicts_importance_times_tail(tail: float, error: float, asked: float) -> None:
    measured = sensitivity((tail, error))
    assert interpolate_error(measured, asked) == pytest.approx(measured.importance * asked, rel=1e-9)


def test_between_points_the_logarithms_are_interpolated() -> None:
    measured = sensitivity((0.01, 1e-6), (0.04, 1e-2))
    assert interpolate_error(measured, 0.02) == pytest.approx(1e-4)
    assert interpolate_error(measured, 0.005) == pytest.approx(0.5e-6)
    assert interpolate_error(measured, 0.08) == pytest.approx(2e-2)


def test_a_point_below_its_predecessor_is_raised() -> None:
    measured = sensitivity((0.1, 0.5), (0.2, 0.3), (0.4, 0.8))
    assert [interpolate_error(measured, tail) for tail in (0.1, 0.15, 0.2, 0.4)] == [0.5, 0.5, 0.5, 0.8]


def test_points_without_a_logarithm_are_interpolated_linearly() -> None:
    measured = sensitivity((0.0, 0.1), (0.4, 0.5))
    assert [interpolate_error(measured, tail) for tail in (0.0, 0.2, 0.4)] == [0.1, pytest.approx(0.3), 0.5]
    measured = sensitivity((0.2, 0.0), (0.4, 0.5))
    assert [interpolate_error(measured, tail) for tail in (0.0, 0.1, 0.2, 0.3)] == [0, 0, 0, pytest.approx(0.25)]


def test_no_loss_is_no_error_unless_one_was_measured() -> None:
    assert interpolate_error(sensitivity((0.5, 0.5)), 0.0) == 0.0
    assert interpolate_error(sensitivity((0.0, 1e-7), (0.5, 0.5)), 0.0) == 1e-7


def test_beyond_an_infinite_error_all_is_infinite_and_below_nothing_is() -> None:
    measured = sensitivity((0.1, 0.2), (0.2, math.inf), (0.3, 0.5))
    assert interpolate_error(measured, 0.05) == pytest.approx(0.1)
    assert interpolate_error(measured, 0.1) == 0.2
    assert [interpolate_error(measured, tail) for tail in (0.11, 0.2, 0.3, 5.0)] == [math.inf] * 4
    assert interpolate_error(sensitivity((0.1, math.inf)), 0.05) == math.inf


def test_nothing_and_infinity_stay_so_at_the_limits_of_float64() -> None:
    tiny, huge = 5e-324, 1e300
    assert interpolate_error(sensitivity((tiny, 0.0)), huge) == 0.0
    assert interpolate_error(sensitivity((huge, math.inf)), tiny) == math.inf
    assert interpolate_error(sensitivity((0.1, 0.2), (0.2, math.inf)), math.nextafter(0.1, 1)) == math.inf


def test_only_exact_points_leave_the_importance_to_extrapolate() -> None:
    assert interpolate_error(Sensitivity(REF, (4,), (1e-9,), (0.0,), 3.0, True), 0.5) == 1.5


@pytest.mark.parametrize("tail", [-0.1, math.inf, math.nan])
def test_a_tail_that_is_none_is_refused(tail: float) -> None:
    with pytest.raises(ValueError, match=r"tail energy .*: expected a finite number of at least 0"):
        interpolate_error(sensitivity((0.1, 0.1)), tail)


def test_nothing_measured_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="weight 'w': nothing was measured to predict from"):
        interpolate_error(Sensitivity(REF, (), (), (), 0.0, True), 0.1)
