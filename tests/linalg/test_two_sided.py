from __future__ import annotations

import numpy as np
import pytest

from lowrank_onnx.linalg import factor
from lowrank_onnx.linalg.two_sided import ScaledColumns, with_identity
from lowrank_onnx.types import Array

ROWS, COLUMNS = 30, 12


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def moment(size: int, seed: int) -> Array:
    rows = drawn(200, size, seed=seed) * np.geomspace(3.0, 0.01, size)
    return rows.T @ rows


def error(E: Array, C: Array, D: Array) -> float:
    return float(np.trace(E.T @ C @ E @ D))


@pytest.mark.parametrize("diagonal", [True, False])
def test_no_other_factors_have_a_smaller_error_in_that_norm(diagonal: bool) -> None:
    W, C, D = drawn(ROWS, COLUMNS), moment(ROWS, 1), moment(COLUMNS, 2)
    rows = with_identity(np.diag(C) if diagonal else C)
    columns = ScaledColumns(D)
    found = factor(columns.scale(W), 4, second_moment=rows)
    approximation = found.left @ columns.restore(found.right)
    wide = np.diag(rows) if diagonal else rows
    least = error(W - approximation, wide, with_identity(D))
    left, right = np.linalg.cholesky(wide), np.linalg.cholesky(with_identity(D))
    tail = np.linalg.svd(left.T @ W @ right, compute_uv=False)[4:]
    assert least == pytest.approx(float(np.sum(tail**2)), rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_at_full_rank_it_is_the_matrix_however_singular_the_moment(dtype: type, tolerance: float) -> None:
    W: Array = drawn(ROWS, COLUMNS).astype(dtype)
    vector = drawn(COLUMNS, 1, seed=3)
    columns = ScaledColumns(vector @ vector.T)
    found = factor(columns.scale(W), COLUMNS)
    approximation = found.left @ columns.restore(found.right)
    assert approximation.dtype == dtype
    assert np.linalg.norm(approximation - W) < tolerance * np.linalg.norm(W)


def test_moments_are_brought_to_one_scale_and_not_changed() -> None:
    D = moment(5, 0)
    before = D.copy()
    np.testing.assert_allclose(with_identity(D), with_identity(1e9 * D), rtol=1e-12)
    np.testing.assert_array_equal(D, before)
    assert np.mean(np.diag(with_identity(D))) == pytest.approx(2.0)
    np.testing.assert_allclose(with_identity(np.array([0.0, 3.0, 3.0])), [1.0, 2.5, 2.5])
    np.testing.assert_array_equal(with_identity(np.zeros((3, 3))), np.eye(3))
