from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.leading import LeadingFactors
from lowrank_onnx.linalg.pulled_leading import PulledLeading, pulled_leading, pulled_leading_on

Doubles = NDArray[np.float64]
AXES = (4, 3, 2)
"""(channels, height, width)."""

OUT = 5
SIZE = math.prod(AXES)
LEADING = ((0,), (0, 1), (0, 2))


def rows(seed: int, count: int = 60) -> tuple[Doubles, Doubles, Doubles]:
    """X, T and W; X of uneven size, T near X W."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((count, SIZE)) * np.geomspace(1.0, 0.05, SIZE)
    W = generator.standard_normal((SIZE, OUT))
    return X, X @ W + 0.3 * generator.standard_normal((count, OUT)), W


def problem(
    X: Doubles, T: Doubles, W: NDArray[Any], leading: tuple[int, ...], backend: Backend = NUMPY
) -> PulledLeading:
    towards = W.reshape(*AXES, OUT)
    return pulled_leading_on(backend, X.T @ X, X.T @ T, towards, float(np.sum(T**2)), leading)


def product(first: NDArray[Any], second: NDArray[Any], leading: tuple[int, ...]) -> Doubles:
    """first * second as a matrix (in, out)."""
    order = (*leading, *(axis for axis in range(3) if axis not in leading))
    moved = np.tensordot(first.astype(np.float64), second, 1).reshape(*(AXES[axis] for axis in order), OUT)
    return np.moveaxis(moved, (0, 1, 2), order).reshape(SIZE, OUT)


def loss(X: Doubles, T: Doubles, W: Doubles, pull: float, A: Doubles) -> float:
    return float(np.sum((X @ A - T) ** 2) + pull * np.sum((A - W) ** 2))


def matrix(factors: LeadingFactors, leading: tuple[int, ...]) -> Doubles:
    return product(factors.first, factors.second, leading)


@settings(max_examples=25, deadline=None)
@given(
    leading=st.sampled_from(LEADING),
    rank=st.integers(1, 4),
    pull=st.sampled_from([1e-3, 0.1, 10.0]),
    count=st.integers(2, 60),
    seed=st.integers(0, 9),
)
def test_what_follows_is_the_least_squares_optimum_at_every_pull(
    leading: tuple[int, ...], rank: int, pull: float, count: int, seed: int
) -> None:
    """Against the stacked rows, of which no Gram matrix is made."""
    X, T, W = rows(seed, count)
    whole = problem(X, T, W, leading)
    start = np.random.default_rng(seed).standard_normal((math.prod(AXES[axis] for axis in leading), rank))
    F = NUMPY.to_host(whole.orthonormal(start))
    b = SIZE // len(F)
    columns = [product(F, unit.reshape(rank, b, 1).repeat(OUT, 2), leading)[:, 0] for unit in np.eye(rank * b)]
    Phi = np.stack(columns, axis=1)
    stacked, targets = np.vstack([X, np.sqrt(pull) * np.eye(SIZE)]), np.vstack([T, np.sqrt(pull) * W])
    best = Phi @ np.linalg.lstsq(stacked @ Phi, targets)[0]
    at_zero = loss(X, T, W, pull, np.zeros((SIZE, OUT)))
    behind = whole.behind(F).family(pull).factors(rank)
    for found in (
        matrix(whole.family(pull, F).factors(rank), leading),
        product(F @ behind.first, behind.second, leading),
    ):
        assert loss(X, T, W, pull, found) == pytest.approx(loss(X, T, W, pull, best), rel=1e-8, abs=1e-10 * at_zero)
    assert behind.error == pytest.approx(loss(X, T, W, pull, best) / at_zero, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("leading", LEADING)
def test_sweeps_lower_the_loss(backend: Backend, leading: tuple[int, ...]) -> None:
    X, T, W = rows(3)
    whole = problem(X, T, W, leading, backend)
    first = whole.orthonormal(np.random.default_rng(0).standard_normal((math.prod(AXES[i] for i in leading), 2)))
    family = whole.family(0.1, first)
    losses = [loss(X, T, W, 0.1, matrix(family.factors(2, sweeps=sweeps), leading)) for sweeps in (0, 1, 10)]
    assert losses[1] < 0.95 * losses[0]
    assert losses[2] <= losses[1]


def test_what_follows_solves_alike_on_every_backend(backend: Backend) -> None:
    X, T, W = rows(4)
    found = []
    for one in (backend, NUMPY):
        whole = problem(X, T, W, (0, 1), one)
        behind = whole.behind(whole.orthonormal(np.random.default_rng(1).standard_normal((12, 3))))
        found.append(behind.family(0.3).factors(3).second)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_at_full_rank_it_is_the_solution_without_a_bound() -> None:
    X, T, W = rows(5)
    found = matrix(problem(X, T, W, (0,)).family(0.1).factors(4), (0,))
    H = X.T @ X + 0.1 * np.eye(SIZE)
    np.testing.assert_allclose(found, np.linalg.solve(H, X.T @ T + 0.1 * W), rtol=1e-8, atol=1e-10)


def test_the_factors_have_the_dtype_of_the_weight() -> None:
    X, T, W = rows(6)
    factors = problem(X, T, W.astype(np.float32), (0,)).family(0.1).factors(2)
    assert factors.first.dtype == factors.second.dtype == np.float32


@pytest.mark.parametrize("pull", [0.0, -1.0, np.nan, np.inf])
def test_a_pull_that_is_not_above_0_is_refused(pull: float) -> None:
    with pytest.raises(FactorizationError, match="expected a finite number above 0"):
        problem(*rows(7), (0,)).family(pull)


def test_equations_that_are_not_positive_are_refused() -> None:
    equations = pulled_leading(-np.eye(4), np.zeros((4, 2)), np.ones((2, 2, 2)), 1.0, (0,), "cpu")
    with pytest.raises(FactorizationError, match=r"a pull of 0\.1 are singular: give a larger one"):
        equations.family(0.1)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(FactorizationError, match=r"shapes \(3, 3\) and \(3, 2\) for coefficients of \(2, 2, 2\)"):
        pulled_leading(np.eye(3), np.zeros((3, 2)), np.ones((2, 2, 2)), 1.0, (0,), "cpu")


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FactorizationError, match="NaN or infinite"):
        pulled_leading(np.eye(4), np.full((4, 2), np.inf), np.ones((2, 2, 2)), 1.0, (0,), "cpu")
