from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend
from lowrank_onnx.linalg.leading import LeadingFactors, fit_leading, patch_problem
from lowrank_onnx.linalg.weighted import FLOOR

SHAPE = (6, 3, 2, 8)
"""(channels, height, width, out)."""


def kernel(shape: tuple[int, ...] = SHAPE, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def patches(size: int, samples: int = 500, seed: int = 1) -> np.ndarray:
    """Correlated rows of uneven size."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(size) + generator.standard_normal((size, size)) / math.sqrt(size)
    return generator.standard_normal((samples, size)) * np.geomspace(1.0, 0.05, size) @ mixing


def product(factors: LeadingFactors, shape: tuple[int, ...], leading: tuple[int, ...]) -> np.ndarray:
    """first * second, in W's layout."""
    axes = range(len(shape) - 1)
    order = (*leading, *(axis for axis in axes if axis not in leading))
    unfolded = np.tensordot(factors.first.astype(np.float64), factors.second.astype(np.float64), 1)
    moved = unfolded.reshape(*(shape[axis] for axis in order), shape[-1])
    return np.moveaxis(moved, list(axes), list(order))


def missed(X: np.ndarray, W: np.ndarray, approximation: np.ndarray) -> float:
    """The relative squared error of what the patches X give."""
    rows = W.reshape(-1, W.shape[-1])
    return float(np.linalg.norm(X @ (rows - approximation.reshape(rows.shape))) / np.linalg.norm(X @ rows)) ** 2


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_kernel_is_exact_at_full_rank(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 4))
    shape = (*(data.draw(st.integers(1, 4)) for _ in range(axes)), data.draw(st.integers(1, 6)))
    count = data.draw(st.integers(1, axes))
    leading = data.draw(st.sampled_from(list(combinations(range(axes), count))))
    W = kernel(shape)
    a = math.prod(shape[axis] for axis in leading)
    rank = min(a, W.size // a)
    size = math.prod(shape[:-1])
    X = patches(size, data.draw(st.sampled_from([3, 200])))
    # What no patch excites is only held by the floor under the moment, and rounded in proportion to all the rest.
    for moment, rounding in ((None, 1e-10), (X.T @ X, 100 * size * np.finfo(np.float64).eps / FLOOR)):
        family = fit_leading(W, leading, rank, second_moment=moment)
        found = product(family.factors(rank), shape, leading)
        np.testing.assert_allclose(found, W, atol=rounding)
        assert family.errors[-1] < 1e-12


@pytest.mark.parametrize("leading", [(0,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_errors_are_those_of_the_factors(backend: Backend, leading: tuple[int, ...], dtype: str) -> None:
    W = kernel(dtype=dtype)
    X = patches(36)
    for moment, rows in ((None, np.eye(36)), (X.T @ X, X)):
        a = math.prod(SHAPE[axis] for axis in leading)
        family = patch_problem(backend, W, moment).fit(leading, min(a, W.size // a))
        assert (np.diff(family.errors) <= 1e-12).all()
        for rank in range(1, family.largest_rank + 1, 2):
            factors = family.factors(rank)
            assert factors.first.dtype == factors.second.dtype == np.dtype(dtype)
            assert factors.error == family.errors[rank - 1]
            found = missed(rows, W, product(factors, SHAPE, leading))
            assert found == pytest.approx(factors.error, rel=1e-3, abs=1e-12)
        assert family.energy == pytest.approx(float(np.linalg.norm(rows @ W.reshape(36, 8))) ** 2, rel=1e-6)


def test_without_a_moment_it_is_the_svd_of_the_unfolded_kernel() -> None:
    W = kernel()
    family = fit_leading(W, (0, 1), 16)
    values = np.linalg.svd(W.reshape(18, 16), compute_uv=False) ** 2
    np.testing.assert_allclose(family.errors, 1.0 - np.cumsum(values) / values.sum(), atol=1e-9)
    factors = family.factors(5, sweeps=3)
    assert factors.error == family.errors[4]
    np.testing.assert_allclose(np.linalg.norm(factors.first, axis=0), np.linalg.norm(factors.second, axis=(1, 2)))


def test_in_a_metric_of_product_form_it_is_the_optimum() -> None:
    W = kernel()
    root = patches(18, 60)
    metric = np.kron(root.T @ root, np.eye(2))
    values = np.linalg.svd(root @ W.reshape(18, 16), compute_uv=False) ** 2
    errors = fit_leading(W, (0, 1), 16, second_moment=metric).errors
    np.testing.assert_allclose(errors, 1.0 - np.cumsum(values) / values.sum(), atol=1e-6)


def test_the_rest_is_the_least_squares_optimum_for_the_first_factor() -> None:
    W, X = kernel(), patches(36)
    factors = fit_leading(W, (0, 1), 6, second_moment=X.T @ X).factors(6)
    basis = np.kron(factors.first, np.eye(2))
    best = np.linalg.lstsq(X @ basis, X @ W.reshape(36, 8), rcond=None)[1].sum()
    assert factors.error == pytest.approx(best / np.linalg.norm(X @ W.reshape(36, 8)) ** 2, rel=1e-5)


@pytest.mark.parametrize("leading", [(0,), (0, 1), (0, 2)])
def test_sweeps_only_gain_and_end_near_a_stationary_point(backend: Backend, leading: tuple[int, ...]) -> None:
    W, X = kernel(), patches(36)
    family = patch_problem(backend, W, X.T @ X).fit(leading, 4)
    errors = [family.factors(4, sweeps=sweeps).error for sweeps in (0, 1, 2, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * errors[0]
    settled = family.factors(4, sweeps=40)
    measured = missed(X, W, product(settled, SHAPE, leading))
    assert measured == pytest.approx(settled.error, rel=1e-6)
    generator = np.random.default_rng(2)
    for _ in range(20):
        moved = settled.first + 0.02 * np.linalg.norm(settled.first) * generator.standard_normal(settled.first.shape)
        order = (*leading, *(axis for axis in range(3) if axis not in leading))
        rows = X.reshape(-1, *SHAPE[:3]).transpose(0, *(1 + axis for axis in order)).reshape(len(X), -1)
        target = W.transpose(*order, 3).reshape(36, 8)
        basis = rows @ np.kron(moved, np.eye(36 // moved.shape[0]))
        around = np.linalg.lstsq(basis, rows @ target, rcond=None)[1].sum() / np.linalg.norm(rows @ target) ** 2
        assert around >= settled.error * (1.0 - 5e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_change_nothing(scale: float) -> None:
    W, X = kernel(), patches(36)
    one = fit_leading(W, (0, 1), 5, second_moment=X.T @ X)
    other = fit_leading(W * scale, (0, 1), 5, second_moment=X.T @ X / scale)
    np.testing.assert_allclose(other.errors, one.errors, rtol=1e-9)
    assert other.energy == pytest.approx(one.energy * scale, rel=1e-9)
    factors = other.factors(5, sweeps=1)
    assert missed(X, W, product(factors, SHAPE, (0, 1)) / scale) == pytest.approx(factors.error, rel=1e-6)


def test_narrow_dtypes_are_accumulated_in_float32() -> None:
    W = kernel(dtype="float16")
    factors = fit_leading(W, (0, 1), 16).factors(16)
    assert factors.first.dtype == np.float32
    np.testing.assert_allclose(product(factors, SHAPE, (0, 1)), W, atol=1e-5)


def test_a_zero_weight_has_no_error() -> None:
    family = fit_leading(np.zeros(SHAPE, np.float32), (0, 1), 3, second_moment=np.eye(36))
    factors = family.factors(2, sweeps=1)
    assert family.errors.tolist() == [0.0, 0.0, 0.0]
    assert not product(factors, SHAPE, (0, 1)).any()


def test_a_moment_with_rounding_below_zero() -> None:
    X = patches(36, 10)
    moment = X.T @ X - 1e-6 * np.linalg.norm(X) ** 2 / 36 * np.eye(36)
    family = fit_leading(kernel(), (0, 1), 16, second_moment=moment)
    assert missed(X, kernel(), product(family.factors(6), SHAPE, (0, 1))) == pytest.approx(family.errors[5], abs=1e-4)


def test_bad_arguments() -> None:
    W = kernel()
    cases = [
        ((W, (), 2), r"leading axes \[\]: expected some of 0 to 2"),
        ((W, (1, 0), 2), r"leading axes \[1, 0\]"),
        ((W, (0, 3), 2), r"leading axes \[0, 3\]"),
        ((W, (0, 1), 17), "rank 17: expected 1 to 16"),
        ((W, (0, 1), 0), "rank 0: expected 1 to 16"),
        ((W * np.nan, (0, 1), 2), "NaN or infinite"),
        ((W.astype(np.int32), (0, 1), 2), "dtype int32"),
        ((W[:, 0, 0, 0], (0,), 1), r"a weight of shape \(\d+,\)"),
    ]
    for arguments, message in cases:
        with pytest.raises(FactorizationError, match=message):
            fit_leading(*arguments)
    with pytest.raises(FactorizationError, match=r"second moment of shape \(3, 3\)"):
        fit_leading(W, (0, 1), 2, second_moment=np.eye(3))
    with pytest.raises(FactorizationError, match="rank 3: expected 1 to 2"):
        fit_leading(W, (0, 1), 2).factors(3)
