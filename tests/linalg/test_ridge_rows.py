"""What both ways have in common is in `test_ridge`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.ridge_rows import pulled_rows
from tests.linalg.test_ridge import EXACT, least_loss, loss, problem


def test_where_nothing_is_to_correct_the_weight_comes_out() -> None:
    X, _, W = problem(3, 8, 6, 2)
    left, right = pulled_rows(X, X @ W, W, "cpu").solve(1e-3, 6, EXACT)
    np.testing.assert_allclose(left @ right, W, atol=1e-10)


@pytest.mark.parametrize("dependent", [False, True])
def test_float32_is_as_good_as_it_can_be(dependent: bool) -> None:
    """Also where two outputs are the same, so that the matrix of their products isn't positive definite."""
    X, T, W = problem(30, 200, 40, 4)
    if dependent:
        W[:, 1], T[:, 1] = W[:, 0], T[:, 0]
    narrow = [part.astype(np.float32) for part in (X, T, W)]
    left, right = pulled_rows(narrow[0], narrow[1], narrow[2], "cpu").solve(0.1, 12, EXACT)
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-4)
    assert loss(X, T, W, 0.1, left.astype(np.float64) @ right) <= least_loss(X, T, W, 0.1, 12) * (1 + 1e-5)


@pytest.mark.parametrize("pull", [0.0, -1.0, np.nan, np.inf])
def test_a_pull_that_is_not_above_0_is_refused(pull: float) -> None:
    with pytest.raises(FactorizationError, match="expected a finite number above 0"):
        pulled_rows(*problem(5, 4, 3, 5), "cpu").solve(pull, 1, EXACT)


def test_equations_that_are_not_positive_are_refused() -> None:
    rows = pulled_rows(*problem(2, 6, 3, 5), "cpu")
    with pytest.raises(FactorizationError, match=r"a pull of 0\.1 are singular: give a larger one"):
        replace(rows, gram=-np.eye(2)).solve(0.1, 1, EXACT)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(FactorizationError, match=r"shapes \(5, 4\) and \(5, 3\) for coefficients of \(4, 2\)"):
        pulled_rows(np.ones((5, 4)), np.ones((5, 3)), np.ones((4, 2)), "cpu")


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FactorizationError, match="NaN or infinite"):
        pulled_rows(np.ones((5, 4)), np.full((5, 3), np.nan), np.ones((4, 3)), "cpu")
