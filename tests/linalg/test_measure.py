from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.linalg.measure import Measurement, measure_approximation


def factors(W: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(W, full_matrices=False)
    return u[:, :rank] * s[:rank], vt[:rank], s


def measure_factors(W: np.ndarray, left: np.ndarray, right: np.ndarray) -> Measurement:
    """Of the product of factors as they are stored, multiplied in the dtype of W."""
    return measure_approximation(W, left.astype(W.dtype) @ right.astype(W.dtype))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_the_singular_values_at_any_scale(dtype: type, scale: float) -> None:
    W: np.ndarray = (np.random.default_rng(0).standard_normal((120, 70)) * scale).astype(dtype)
    left, right, s = factors(W.astype(np.float64), 20)
    measured = measure_factors(W, left.astype(dtype), right.astype(dtype))
    assert measured.relative_error == pytest.approx(np.linalg.norm(s[20:]) / np.linalg.norm(s), rel=1e-4)
    assert measured.spectral_error == pytest.approx(s[20] / s[0], rel=0.1)
    assert measured.spectral_error <= s[20] / s[0] * 1.05


def test_rounding_of_the_factors_is_part_of_the_error() -> None:
    W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    left, right, _ = factors(W, 48)
    exact = measure_factors(W, left, right)
    rounded = measure_factors(W, left.astype(ml_dtypes.bfloat16), right.astype(ml_dtypes.bfloat16))
    assert exact.relative_error < 1e-5
    assert 1e-3 < rounded.relative_error < 1e-2


def test_wrong_factors_are_seen() -> None:
    W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    left, right, _ = factors(W, 48)
    assert measure_factors(W, -left, right).relative_error == pytest.approx(2.0, rel=1e-4)


def test_zero_matrix() -> None:
    measured = measure_factors(np.zeros((8, 4), np.float32), np.zeros((8, 2), np.float32), np.zeros((2, 4), np.float32))
    assert measured.relative_error == 0.0
    assert measured.spectral_error == 0.0
