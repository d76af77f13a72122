from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.ridge import PulledRegression, pulled_regression, pulled_regression_on
from lowrank_onnx.linalg.ridge_rows import PulledRows, pulled_rows_on
from lowrank_onnx.linalg.solve import SolverOptions

Doubles = NDArray[np.float64]
EXACT = SolverOptions(method="svd")
SetUp: TypeAlias = Callable[[Backend, Doubles, Doubles, Doubles], PulledRegression | PulledRows]


def problem(rows: int, inputs: int, outputs: int, seed: int) -> tuple[Doubles, Doubles, Doubles]:
    generator = np.random.default_rng(seed)
    X, T, W = (generator.standard_normal(shape) for shape in ((rows, inputs), (rows, outputs), (inputs, outputs)))
    return X, T, W


def loss(X: Doubles, T: Doubles, W: Doubles, pull: float, product: NDArray[Any]) -> float:
    return float(np.sum((X @ product - T) ** 2) + pull * np.sum((product - W) ** 2))


def least_loss(X: Doubles, T: Doubles, W: Doubles, pull: float, rank: int) -> float:
    """By QR of the stacked rows: no Gram matrix, no Cholesky factor."""
    inputs = X.shape[1]
    stacked, targets = np.vstack([X, np.sqrt(pull) * np.eye(inputs)]), np.vstack([T, np.sqrt(pull) * W])
    Q, R = np.linalg.qr(stacked)
    U, s, V = np.linalg.svd(Q.T @ targets, full_matrices=False)
    product = np.linalg.solve(R, (U[:, :rank] * s[:rank]) @ V[:rank])
    return loss(X, T, W, pull, product)


def by_moments(backend: Backend, X: Doubles, T: Doubles, W: Doubles) -> PulledRegression:
    return pulled_regression_on(backend, X.T @ X, X.T @ T, W)


@pytest.mark.parametrize("set_up", [by_moments, pulled_rows_on])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    pull=st.sampled_from([1e-3, 0.1, 10.0]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_no_factors_of_the_rank_have_less_loss(
    set_up: SetUp, rows: int, inputs: int, outputs: int, pull: float, seed: int, data: st.DataObject
) -> None:
    X, T, W = problem(rows, inputs, outputs, seed)
    rank = data.draw(st.integers(1, min(inputs, outputs)))
    left, right = set_up(NUMPY, X, T, W).solve(pull, rank, EXACT)
    assert left.shape == (inputs, rank)
    assert right.shape == (rank, outputs)
    assert loss(X, T, W, pull, left @ right) <= least_loss(X, T, W, pull, rank) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("set_up", [by_moments, pulled_rows_on])
@pytest.mark.parametrize("rows", [5, 40])
def test_it_solves_on_every_backend(backend: Backend, set_up: SetUp, rows: int) -> None:
    X, T, W = problem(rows, 12, 9, 1)
    left, right = set_up(backend, X, T, W).solve(0.5, 4, EXACT)
    assert loss(X, T, W, 0.5, left @ right) <= least_loss(X, T, W, 0.5, 4) * (1 + 1e-9)


def test_where_nothing_is_to_correct_the_weight_comes_out() -> None:
    X, _, W = problem(3, 8, 6, 2)  # fewer rows than features: without the pull, anything would do
    left, right = pulled_regression(X.T @ X, X.T @ X @ W, W, "cpu").solve(1e-3, 6, EXACT)
    np.testing.assert_allclose(left @ right, W, atol=1e-10)


def test_a_strong_pull_leads_to_the_best_approximation_of_the_weight() -> None:
    X, T, W = problem(40, 8, 6, 3)
    left, right = pulled_regression(X.T @ X, X.T @ T, W, "cpu").solve(1e9, 2, EXACT)
    U, s, V = np.linalg.svd(W)
    np.testing.assert_allclose(left @ right, (U[:, :2] * s[:2]) @ V[:2], atol=1e-6)


def test_the_factors_are_balanced_and_have_the_dtype_of_the_weight() -> None:
    X, T, W = problem(40, 8, 6, 4)
    left, right = pulled_regression(X.T @ X, X.T @ T, W.astype(np.float32), "cpu").solve(0.1, 3, EXACT)
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-4)


@pytest.mark.parametrize("pull", [0.0, -1.0, np.nan, np.inf])
def test_a_pull_that_is_not_above_0_is_refused(pull: float) -> None:
    X, T, W = problem(5, 4, 3, 5)
    regression = pulled_regression(X.T @ X, X.T @ T, W, "cpu")
    with pytest.raises(FactorizationError, match="expected a finite number above 0"):
        regression.solve(pull, 1, EXACT)


def test_equations_that_are_not_positive_are_refused() -> None:
    regression = pulled_regression(-np.eye(3), np.zeros((3, 2)), np.ones((3, 2)), "cpu")
    with pytest.raises(FactorizationError, match=r"a pull of 0\.1 are singular: give a larger one"):
        regression.solve(0.1, 1, EXACT)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(FactorizationError, match=r"shapes \(3, 3\) and \(3, 2\) for coefficients of \(3, 4\)"):
        pulled_regression(np.eye(3), np.zeros((3, 2)), np.ones((3, 4)), "cpu")


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FactorizationError, match="NaN or infinite"):
        pulled_regression(np.eye(3), np.full((3, 2), np.inf), np.ones((3, 2)), "cpu")
