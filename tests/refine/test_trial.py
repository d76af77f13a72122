from __future__ import annotations

import math

import numpy as np
import pytest

from lowrank_onnx.refine.trial import Errors, ErrorSum, helps
from lowrank_onnx.types import Array

FEED = {"x": np.zeros((4, 3), np.float32)}
EXPECTED = np.ones((4, 2), np.float32)


def errors(*values: float, total: float = 0.1) -> Errors:
    """Of samples with these errors."""
    return Errors(total, np.square(np.array(values)))


def added(*outputs: Array) -> Errors:
    total = ErrorSum()
    for output in outputs:
        total.add(FEED, {"y": EXPECTED}, {"y": output})
    return total.finish()


def test_errors_are_counted_by_sample() -> None:
    other = EXPECTED.copy()
    other[2] = [1.3, 0.6]
    found = added(EXPECTED, other)
    np.testing.assert_allclose(found.squares, [0, 0, 0, 0, 0, 0, 0.125, 0], rtol=1e-5)
    assert found.overall == pytest.approx(math.sqrt(0.25 / 16))


def test_a_feed_without_a_common_first_axis_is_one_sample() -> None:
    total = ErrorSum()
    total.add(FEED, {"y": np.ones(5, np.float32)}, {"y": np.full(5, 1.5, np.float32)})
    np.testing.assert_allclose(total.finish().squares, [0.25])


def test_the_typical_sample_decides_and_not_the_largest_error() -> None:
    before, after = errors(1.0, 0.1, 0.1, 0.1), errors(1.1, 0.05, 0.05, 0.05)
    assert after.typical == pytest.approx(before.typical * (1.1 / 8) ** 0.25)
    assert helps(after, before)
    assert not helps(before, after)


def test_what_is_clearly_worse_in_all_does_not_help() -> None:
    before, after = errors(1.0, 1.0, 1.0, 0.1), errors(1.5, 1.5, 1.5, 0.001)
    assert after.typical < before.typical
    assert not helps(after, before)


def test_the_same_does_not_help() -> None:
    assert not helps(errors(0.1, 0.2), errors(0.1, 0.2))


def test_a_margin_asks_for_certainty() -> None:
    before, after = errors(0.1, 0.1, 0.1, 0.1), errors(0.05, 0.09, 0.11, 0.08)
    assert helps(after, before)
    assert not helps(after, before, margin=2.0)
    assert helps(errors(0.05, 0.051, 0.05, 0.049), before, margin=2.0)
    assert not helps(errors(0.05), errors(0.1), margin=2.0)


def test_errors_that_are_not_finite_do_not_help() -> None:
    assert not helps(added(np.full_like(EXPECTED, np.nan)), added(EXPECTED + 1))
    assert not helps(errors(0.1, total=math.inf), errors(0.2))


def test_outputs_without_numbers_are_compared_as_a_whole() -> None:
    labels = np.array(["a", "b"])
    total = ErrorSum()
    total.add(FEED, {"label": labels}, {"label": labels})
    same = total.finish()
    assert same.squares.size == 0
    assert not helps(same, same)
    total = ErrorSum()
    total.add(FEED, {"label": labels}, {"label": labels[::-1]})
    changed = total.finish()
    assert changed.overall == 1.0
    assert helps(same, changed)
    assert same.typical == same.overall
