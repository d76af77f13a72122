from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowrank_onnx.linalg.backend import Backend
from lowrank_onnx.linalg.orthonormal import orthonormal_complement, orthonormalize, project_out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_two_passes_are_orthonormal_to_rounding(backend: Backend, dtype: Any, condition: float) -> None:
    generator = np.random.default_rng(0)
    Z = (generator.standard_normal((200, 12)) @ np.diag(np.geomspace(1.0, 1.0 / condition, 12))).astype(dtype)
    Z = Z @ generator.standard_normal((12, 12)).astype(dtype)
    Q = backend.to_host(orthonormalize(backend, orthonormalize(backend, backend.to_device(Z))))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(Q.T @ Q, np.eye(12), atol=20.0 * eps)
    np.testing.assert_allclose(Z - Q @ (Q.T @ Z), 0.0, atol=100.0 * eps * np.abs(Z).max())
    assert Q.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_of_any_scale_are_equal(backend: Backend, dtype: Any) -> None:
    Z = np.random.default_rng(0).standard_normal((50, 4)).astype(dtype) * np.array([1e-15, 1.0, 1e15, 1e-3], dtype)
    Q = backend.to_host(orthonormalize(backend, backend.to_device(Z)))
    np.testing.assert_allclose(Q.T @ Q, np.eye(4), atol=30.0 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["dependent", "zero"])
def test_lost_directions_are_made_up(backend: Backend, dtype: Any, kind: str) -> None:
    Z = np.random.default_rng(0).standard_normal((40, 5)).astype(dtype)
    Z[:, 3] = Z[:, 0] if kind == "dependent" else 0.0
    Q = backend.to_host(orthonormalize(backend, orthonormalize(backend, backend.to_device(Z))))
    np.testing.assert_allclose(Q.T @ Q, np.eye(5), atol=30.0 * float(np.finfo(dtype).eps))
    np.testing.assert_allclose(Z - Q @ (Q.T @ Z), 0.0, atol=1e-5)


def test_projection_leaves_nothing_of_the_basis(backend: Backend) -> None:
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((30, 6)))[0]
    Z = generator.standard_normal((30, 4))
    out = backend.to_host(project_out(backend.to_device(basis), backend.to_device(Z)))
    np.testing.assert_allclose(basis.T @ out, 0.0, atol=1e-13)
    np.testing.assert_allclose(out + basis @ (basis.T @ Z), Z, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("outside", [1.0, 1e-5, 0.0])
def test_a_complement_is_orthogonal_also_of_what_lies_in_the_basis(
    backend: Backend, dtype: Any, outside: float
) -> None:
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((60, 40)))[0].astype(dtype)
    new = generator.standard_normal((60, 6))
    Z = (basis @ generator.standard_normal((40, 6)) + outside * new).astype(dtype)
    Q = backend.to_host(orthonormal_complement(backend, backend.to_device(basis), backend.to_device(Z)))
    rounding = 50.0 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(basis.T @ Q, 0.0, atol=rounding)
    np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=rounding)
    rest = Z - basis @ (basis.T @ Z)
    np.testing.assert_allclose(rest, Q @ (Q.T @ rest), atol=rounding * 10.0)
