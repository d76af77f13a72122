"""Every solver, on every named spectrum, backend and dtype."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.linalg import FactorRequest, Method, SolverOptions, lapack
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.exact import solve_eigen
from lowrank_onnx.linalg.factor import factor_on
from tests.linalg.conftest import STRICT, read_only

NEAR_OPTIMAL = ("auto", "svd", "eigen", "krylov", "chebyshev")
SHAPES = [(150, 110), (90, 260)]


def normalised_error(W: np.ndarray, product: np.ndarray, following: float, dtype: Any) -> float:
    """``||W - L R||_2 / sigma_(r+1)``, where rounding relative to ``||W||_2`` counts as optimal."""
    W = W.astype(np.float64)
    floor = 30.0 * float(np.finfo(dtype).eps) * float(np.linalg.norm(W, 2))
    return float(np.linalg.norm(W - product.astype(np.float64), 2)) / max(following, floor)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", get_args(Method))
def test_every_solver_on_every_spectrum(backend: Backend, method: Method, spectrum: str, dtype: Any) -> None:
    for shape in SHAPES:
        values = SPECTRA[spectrum](min(shape))
        W = read_only(matrix(shape, values, seed=3, dtype=dtype))
        rank = 12
        result = factor_on(backend, W, FactorRequest(rank, options=SolverOptions(method=method)))
        assert result.left.shape == (shape[0], rank)
        assert result.right.shape == (rank, shape[1])
        assert result.left.dtype == result.right.dtype == result.singular_values.dtype == dtype
        product = result.left.astype(np.float64) @ result.right
        if method in NEAR_OPTIMAL:
            assert normalised_error(W, product, values[rank], dtype) <= 1.02
        residual = np.linalg.norm(W - product)
        rounding = 30.0 * float(np.finfo(dtype).eps)
        assert result.relative_error == pytest.approx(residual / np.linalg.norm(W), rel=1e-3, abs=rounding)
        spectral = float(np.linalg.norm(W - product, 2) / np.linalg.norm(W.astype(np.float64), 2))
        assert result.spectral_error <= spectral * (1.0 + 1e-3) + rounding
        assert result.spectral_error >= spectral * 0.8 - rounding
        assert np.all(np.diff(result.singular_values) <= 0.0)


@pytest.mark.parametrize("method", get_args(Method))
def test_backends_share_the_sketch_and_agree(method: Method) -> None:
    W = matrix((120, 100), SPECTRA["slow"](100), seed=0, dtype=np.float64)
    request = FactorRequest(10, options=SolverOptions(method=method, seed=5))
    host, double = factor_on(NUMPY, W, request), factor_on(STRICT, W, request)
    np.testing.assert_allclose(double.singular_values, host.singular_values, rtol=1e-10)
    np.testing.assert_allclose(double.left @ double.right, host.left @ host.right, atol=1e-10)
    assert double.solver == host.solver


@pytest.mark.gpu
@pytest.mark.parametrize("method", get_args(Method))
def test_cuda_agrees_with_the_host(method: Method) -> None:
    from lowrank_onnx.linalg.backend import select_backend

    W = matrix((700, 500), SPECTRA["slow"](500), seed=0, dtype=np.float64)
    request = FactorRequest(40, options=SolverOptions(method=method, seed=5))
    host, cuda = factor_on(NUMPY, W, request), factor_on(select_backend("cuda"), W, request)
    np.testing.assert_allclose(cuda.left @ cuda.right, host.left @ host.right, atol=1e-9)


def test_large_enough_matrices_are_approximated_within_the_tolerance() -> None:
    for shape, rank, expected in (
        ((600, 500), 64, "chebyshev(l=80"),
        ((500, 3000), 40, "chebyshev(l=48"),
        ((1100, 1000), 20, "krylov(b=16"),
    ):
        values = SPECTRA["slow"](min(shape))
        W = matrix(shape, values, seed=1)
        result = factor_on(NUMPY, W, FactorRequest(rank))
        assert result.solver.startswith(expected), result.solver
        assert np.linalg.norm(W - result.left @ result.right, 2) <= 1.02 * values[rank]


def test_half_of_the_rank_is_solved_exactly() -> None:
    W = matrix((300, 200), SPECTRA["slow"](200), seed=1)
    assert factor_on(NUMPY, W, FactorRequest(100)).solver == "eigen(n=200)"


def test_small_singular_values_are_found_without_squaring_in_float32() -> None:
    values = np.geomspace(1.0, 1e-6, 200)
    W = matrix((400, 200), values, seed=2, dtype=np.float64).astype(np.float32)
    result = factor_on(NUMPY, W, FactorRequest(80))
    assert result.solver == "eigen(n=200, float64)"
    np.testing.assert_allclose(result.singular_values, values[:80], rtol=1e-3)
    double = factor_on(NUMPY, W.astype(np.float64), FactorRequest(195))
    assert double.solver.startswith(("bidiagonal", "svd", "eigen"))
    np.testing.assert_allclose(double.singular_values[:60], values[:60], rtol=1e-3)


@pytest.mark.parametrize(("smallest", "solver"), [(0.5, "eigen(n=200)"), (1e-3, "eigen(n=200, float64)")])
def test_eigenvectors_that_float32_must_lose_are_not_computed(
    monkeypatch: pytest.MonkeyPatch, smallest: float, solver: str
) -> None:
    asked: list[Any] = []
    solve = lapack.eigh_leading

    def counted(G: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(G.dtype)
        return solve(G, count)

    monkeypatch.setattr(lapack, "eigh_leading", counted)
    W = matrix((400, 200), np.geomspace(1.0, smallest, 200), seed=2, dtype=np.float64).astype(np.float32)
    result = solve_eigen(NUMPY, W, 199)
    assert result is not None
    assert result.solver == solver
    assert len(asked) == 1


def test_a_rank_beyond_float64_squares_takes_the_bidiagonal_or_the_svd() -> None:
    values = np.append(np.geomspace(1.0, 1e-14, 120), np.zeros(180))
    W = matrix((400, 300), values, seed=2, dtype=np.float64)
    deep = factor_on(NUMPY, W, FactorRequest(70))
    assert deep.solver.startswith("bidiagonal")
    np.testing.assert_allclose(deep.singular_values, values[:70], rtol=1e-4)
    full = factor_on(NUMPY, W, FactorRequest(250))
    assert full.solver == "svd"
    np.testing.assert_allclose(full.singular_values[:80], values[:80], rtol=1e-3)
