from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.errors import FactorizationError, MissingDependencyError
from lowrank_onnx.linalg import factor
from lowrank_onnx.linalg.backend import cuda_problem


def weight(dtype: Any = np.float32) -> np.ndarray:
    return matrix((70, 50), SPECTRA["slow"](50), seed=0, dtype=np.float64).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "accumulated"),
    [(np.float16, np.float32), (ml_dtypes.bfloat16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_narrow_dtypes_are_accumulated_wide(dtype: Any, accumulated: Any) -> None:
    W = weight(dtype)
    result = factor(W, 10)
    assert result.left.dtype == result.right.dtype == accumulated
    exact = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(result.singular_values, exact[:10], rtol=1e-4)
    assert result.relative_error == pytest.approx(np.linalg.norm(exact[10:]) / np.linalg.norm(exact), rel=1e-4)
    assert result.energy == pytest.approx(np.sum(exact**2), rel=1e-6)


def test_factors_are_balanced() -> None:
    result = factor(weight(), 10)
    roots = np.sqrt(result.singular_values)
    np.testing.assert_allclose(np.linalg.norm(result.left, axis=0), roots, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(result.right, axis=1), roots, rtol=1e-5)


@pytest.mark.parametrize("method", ["auto", "krylov", "eigen", "svd", "rsi"])
def test_same_seed_same_bytes(method: Any) -> None:
    W = matrix((300, 280), SPECTRA["slow"](280), seed=0)
    first, second = (factor(W, 20, method=method, seed=7) for _ in range(2))
    assert first.left.tobytes() == second.left.tobytes()
    assert first.right.tobytes() == second.right.tobytes()
    assert (first.relative_error, first.spectral_error) == (second.relative_error, second.spectral_error)
    if method in ("krylov", "rsi"):
        assert factor(W, 20, method=method, seed=8).left.tobytes() != first.left.tobytes()


def test_any_strides_and_read_only_memory_maps(tmp_path: Path) -> None:
    W = weight()
    expected = factor(W, 8)
    path = tmp_path / "weight.bin"
    path.write_bytes(np.asfortranarray(W).tobytes(order="F"))
    mapped = np.memmap(path, W.dtype, "r", shape=W.shape[::-1]).T
    padded = np.zeros((140, 150), np.float32)
    padded[::2, ::3] = W
    for view in (mapped, padded[::2, ::3], W[::-1, ::-1][::-1, ::-1]):
        result = factor(view, 8)
        np.testing.assert_allclose(result.left @ result.right, expected.left @ expected.right, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_every_shape_and_rank_is_optimal(rows: int, columns: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    seed = data.draw(st.integers(0, 1000))
    W = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    result = factor(W, rank)
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    tail = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    assert result.relative_error == pytest.approx(tail, rel=1e-3, abs=3e-6)
    product = result.left.astype(np.float64) @ result.right
    assert np.linalg.norm(W - product) / np.linalg.norm(values) == pytest.approx(tail, rel=1e-3, abs=3e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 24), st.sampled_from(["slow", "exponential", "step", "deficient"]))
def test_a_prefix_is_the_smaller_factorization(rank: int, spectrum: str) -> None:
    W = matrix((60, 40), SPECTRA[spectrum](40), seed=1)
    large = factor(W, 24)
    prefix = large.truncate(rank)
    direct = factor(W, rank)
    assert prefix.rank == rank
    exact = np.linalg.norm(W.astype(np.float64) - prefix.left.astype(np.float64) @ prefix.right) / np.linalg.norm(W)
    assert prefix.relative_error == pytest.approx(exact, rel=1e-3, abs=3e-6)
    assert prefix.relative_error == pytest.approx(direct.relative_error, rel=1e-3, abs=3e-6)
    assert prefix.spectral_error == pytest.approx(direct.spectral_error, rel=1e-2, abs=3e-6)
    assert prefix.solver.startswith(large.solver)


def test_a_prefix_needs_a_rank_that_is_there() -> None:
    result = factor(weight(), 10)
    assert result.truncate(10) is result
    for rank in (0, 11):
        with pytest.raises(FactorizationError, match=f"truncate to rank {rank}: expected 1 to 10"):
            result.truncate(rank)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("method", ["auto", "svd", "rsi"])
def test_extreme_scales(scale: float, method: Any) -> None:
    plain, scaled = factor(weight(), 9, method=method), factor(weight() * np.float32(scale), 9, method=method)
    np.testing.assert_allclose(scaled.singular_values / scale, plain.singular_values, rtol=1e-3)
    np.testing.assert_allclose(
        (scaled.left / scale**0.5) @ (scaled.right / scale**0.5), plain.left @ plain.right, atol=1e-4
    )
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-3)
    assert scaled.spectral_error == pytest.approx(plain.spectral_error, rel=1e-2)
    assert scaled.truncate(3).relative_error == pytest.approx(plain.truncate(3).relative_error, rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "krylov", "eigen", "svd", "rsi", "rsvd"])
def test_zero_and_rank_deficient_matrices(method: Any) -> None:
    zero = factor(np.zeros((6, 5), np.float16), 3, method=method)
    assert (zero.relative_error, zero.spectral_error, zero.energy) == (0.0, 0.0, 0.0)
    assert not zero.left.any()
    assert zero.solver == "zero matrix"
    assert zero.truncate(2).relative_error == 0.0
    u, v = np.arange(1.0, 9.0, dtype=np.float32), np.arange(1.0, 7.0, dtype=np.float32)
    one = factor(np.outer(u, v), 4, method=method)
    np.testing.assert_allclose(one.left @ one.right, np.outer(u, v), rtol=1e-5, atol=1e-4)
    assert np.all(np.isfinite(one.left))
    assert np.all(np.isfinite(one.right))
    assert one.relative_error < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_entries_that_are_not_finite_are_counted(bad: float, dtype: Any) -> None:
    W = weight(dtype)
    W[3, 4] = W[5, 6] = bad
    with pytest.raises(FactorizationError, match=r"shape \(70, 50\) with 2 NaN or infinite entries"):
        factor(W, 5)


@pytest.mark.parametrize(
    ("shape", "rank", "options", "message"),
    [
        ((0, 5), 1, {}, r"shape \(0, 5\): expected a matrix"),
        ((5,), 1, {}, r"shape \(5,\): expected a matrix"),
        ((2, 3, 4), 1, {}, r"shape \(2, 3, 4\): expected a matrix"),
        ((5, 4), 0, {}, "rank 0 .*expected 1 to 4"),
        ((5, 4), 5, {}, "rank 5 .*expected 1 to 4"),
        ((5, 4), 2.0, {}, "rank 2.0: expected a whole number"),
        ((5, 4), "2", {}, "rank '2': expected a whole number"),
        ((5, 4), None, {}, "nothing given: expected one of error, energy, spectral"),
        ((5, 4), 2, {"error": 0.1}, "rank 2 and a target given: expected one of"),
        ((5, 4), None, {"error": 0.1, "energy": 0.5}, "error and energy given: expected one of"),
        ((5, 4), None, {"error": 1.5}, "error 1.5: expected a share"),
        ((5, 4), None, {"energy": 0.0}, "energy 0: expected a share"),
        ((5, 4), None, {"spectral": -1.0}, "spectral -1: expected a share"),
        ((5, 4), 2, {"method": "qr"}, "method 'qr': expected one of auto, rsi"),
        ((5, 4), 2, {"power_iterations": 0}, "power_iterations 0: expected at least 1"),
        ((5, 4), 2, {"oversampling": -1}, "oversampling -1: expected 0 or more"),
        ((5, 4), 2, {"tolerance": 1.0}, "tolerance 1: expected a normalised error above 1"),
        ((5, 4), 2, {"seed": -1}, "seed -1: expected a whole number"),
    ],
)
def test_bad_arguments(shape: tuple[int, ...], rank: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FactorizationError, match=message):
        factor(np.ones(shape, np.float32), rank, **options)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(FactorizationError, match="dtype int8: expected float16, bfloat16, float32, float64"):
        factor(np.ones((4, 4), np.int8), 1)


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA is usable here")
def test_cuda_that_is_absent_is_an_error_with_its_fix() -> None:
    with pytest.raises(MissingDependencyError, match=r"device 'cuda': CuPy .*; or use device 'cpu'"):
        factor(weight(), 5, device="cuda")


@pytest.mark.parametrize("target", [{"error": 0.4}, {"energy": 0.8}, {"spectral": 0.3}])
@pytest.mark.parametrize("method", ["auto", "krylov", "eigen", "svd", "rsi"])
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_the_smallest_rank_for_a_target(target: dict[str, Any], method: Any, shape: tuple[int, int]) -> None:
    values = SPECTRA["slow"](60)
    result = factor(matrix(shape, values, seed=0), method=method, **target)
    shares = np.array([np.sum(values[r:] ** 2) for r in range(61)]) / np.sum(values**2)
    if "spectral" in target:
        smallest = int(np.count_nonzero(values > 0.3))
    else:
        smallest = int(np.flatnonzero(shares <= (0.4**2 if "error" in target else 0.2))[0])
    slack = 6 if method == "rsi" else 1 if method == "krylov" else 0
    assert smallest <= result.rank <= smallest + slack
    if "error" in target:
        assert result.relative_error <= 0.4
    if "spectral" in target:
        assert result.spectral_error <= 0.3 * (1.0 + 1e-6)
    if "energy" in target:
        assert result.relative_error**2 <= 0.2 * (1.0 + 1e-6)


def test_targets_of_large_matrices_are_searched_by_doubling() -> None:
    values = SPECTRA["slow"](1100)
    W = matrix((1100, 1100), values, seed=0)
    result = factor(W, spectral=0.12)
    assert abs(result.rank - np.count_nonzero(values > 0.12)) <= 1
    assert result.relative_error == pytest.approx(
        np.linalg.norm(values[result.rank :]) / np.linalg.norm(values), rel=2e-3
    )
    assert np.linalg.norm(W - result.left @ result.right, 2) <= 0.12 * 1.03


def test_a_target_that_only_the_full_rank_reaches() -> None:
    result = factor(weight(), error=0.0)
    assert result.rank == 50
    assert result.relative_error < 1e-5
