from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg import narrow_factors
from lowrank_onnx.linalg.backend import Backend
from lowrank_onnx.linalg.precision import prepare, squared_norm


def test_factors_that_fit_are_only_rounded() -> None:
    left, right = np.array([[1.0, 60000.0]]), np.array([[2.0], [3.0]])
    narrow = narrow_factors(left, right, np.dtype(np.float16))
    assert [a.dtype for a in narrow] == [np.float16, np.float16]
    np.testing.assert_array_equal(narrow[0], left.astype(np.float16))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)])
def test_an_overflow_moves_to_the_other_factor(dtype: np.dtype[Any]) -> None:
    huge = float(ml_dtypes.finfo(dtype).max) * 8.0  # type: ignore[no-untyped-call]
    left, right = np.array([[huge, 1.0], [huge / 2.0, 2.0]]), np.array([[2.0**-6, 2.0**-7], [3.0, 4.0]])
    narrow_left, narrow_right = narrow_factors(left, right, dtype)
    assert np.all(np.isfinite(narrow_left.astype(np.float64)))
    product = narrow_left.astype(np.float64) @ narrow_right.astype(np.float64)
    np.testing.assert_allclose(product, left @ right, rtol=2e-2)
    # The direction that fits keeps its values.
    np.testing.assert_array_equal(narrow_left[:, 1].astype(np.float64), left[:, 1])
    mirrored = narrow_factors(right.T, left.T, dtype)
    np.testing.assert_allclose(
        mirrored[0].astype(np.float64) @ mirrored[1].astype(np.float64), (left @ right).T, rtol=2e-2
    )


def test_a_product_that_no_split_can_hold_is_an_error() -> None:
    left, right = np.full((2, 1), 1e6), np.full((1, 2), 1e6)
    with pytest.raises(FactorizationError, match=r"expected at most 6\.55e\+04, the largest float16"):
        narrow_factors(left, right, np.dtype(np.float16))


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_squares_are_safe_after_preparation(backend: Backend, scale: float) -> None:
    W = (np.array([[1.0, 0.5], [0.25, 0.75], [0.0, 1.0]]) * scale).astype(np.float32)
    prepared = prepare(backend, W)
    assert 1e-12 <= prepared.energy <= 1e24
    restored = backend.to_host(prepared.matrix).astype(np.float64) * 2.0**prepared.exponent
    np.testing.assert_allclose(restored, W, rtol=1e-6)
    assert prepared.energy == pytest.approx(squared_norm(backend, prepared.matrix))


def test_bfloat16_reaches_the_device_as_float32(backend: Backend) -> None:
    prepared = prepare(backend, np.ones((3, 2), ml_dtypes.bfloat16))
    assert prepared.matrix.dtype == backend.xp.float32
    assert prepared.energy == 6.0
