from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg import FactorRequest, factor
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.factor import factor_on
from lowrank_onnx.linalg.weighted import FEW_OUTPUTS, FLOOR, transposed_root, weigh


def inputs(samples: int, features: int, condition: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((samples, features)) * np.geomspace(1.0, 1.0 / condition, features)


def best(X: np.ndarray, W: np.ndarray, rank: int) -> float:
    values = np.linalg.svd(X @ W, compute_uv=False)
    return float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.sampled_from([1.0, 1e2, 1e4]), st.integers(1, 30), st.booleans())
def test_outputs_are_approximated_as_well_as_can_be(samples: int, condition: float, rank: int, wide: bool) -> None:
    shape = (40, 70) if wide else (70, 40)
    W = matrix(shape, SPECTRA["slow"](40), seed=1, dtype=np.float64)
    X = inputs(samples, shape[0], condition, samples)
    result = factor(W, rank, second_moment=X.T @ X)
    error = float(np.linalg.norm(X @ (W - result.left @ result.right)) / np.linalg.norm(X @ W))
    # What the floor under the second moment weighs in, relative to the optimum.
    floor = 2e-4
    assert error <= best(X, W, rank) * (1.0 + 1e-6) + floor
    assert result.weighted_error == pytest.approx(error, rel=1e-6, abs=floor)
    assert result.weighted_energy == pytest.approx(float(np.linalg.norm(X @ W)) ** 2, rel=1e-6)
    plain = float(np.linalg.norm(W - result.left @ result.right) / np.linalg.norm(W))
    assert result.relative_error == pytest.approx(plain, rel=1e-9, abs=1e-12)


def test_it_beats_the_plain_factorization_where_inputs_are_uneven(backend: Backend) -> None:
    W = matrix((90, 60), SPECTRA["slow"](60), seed=1)
    X = inputs(500, 90, 1e3)
    weighted = factor_on(backend, W, FactorRequest(12, second_moment=X.T @ X))
    plain = factor(W, 12)

    def error(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.linalg.norm(X @ (W - left @ right)) / np.linalg.norm(X @ W))

    assert error(weighted.left, weighted.right) == pytest.approx(best(X, W, 12), rel=1e-3)
    assert error(weighted.left, weighted.right) < 0.6 * error(plain.left, plain.right)
    assert weighted.relative_error > plain.relative_error
    assert weighted.weighted_error == pytest.approx(error(weighted.left, weighted.right), rel=1e-3)
    assert weighted.solver.endswith(", weighted")


@pytest.mark.parametrize("samples", [20, 1000])
def test_few_outputs_take_a_root_of_their_own_moment(backend: Backend, samples: int) -> None:
    W = matrix((90, 40), SPECTRA["slow"](40), seed=1, dtype=np.float32)
    assert W.shape[1] * FEW_OUTPUTS <= W.shape[0]
    X = inputs(samples, 90, 1e2)
    C = X.T @ X / samples
    root = backend.to_host(weigh(backend, C, backend.to_device(W)))
    wide = W.astype(np.float64)
    expected = wide.T @ (C + FLOOR * np.eye(90)) @ wide
    assert root.shape == (40, 40)
    assert root.dtype == np.float32
    np.testing.assert_allclose(root.T.astype(np.float64) @ root, expected, atol=1e-6 * np.trace(expected))
    error = float(np.linalg.norm(X @ (wide - np.matmul(*factors_of(W, 10, C)))) / np.linalg.norm(X @ wide))
    assert error == pytest.approx(best(X, wide, 10), rel=1e-3)


def factors_of(W: np.ndarray, rank: int, second_moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    result = factor(W, rank, second_moment=second_moment)
    return result.left, result.right


def test_outputs_that_repeat_take_the_root_of_the_inputs_moment(backend: Backend) -> None:
    column = matrix((90, 10), SPECTRA["slow"](10), seed=1, dtype=np.float32)
    W = np.concatenate((column, column, np.zeros((90, 10), np.float32)), axis=1)
    C = np.eye(90)
    weighted = backend.to_host(weigh(backend, C, backend.to_device(W)))
    np.testing.assert_allclose(weighted.T @ weighted, W.T @ W, atol=1e-5)
    assert np.linalg.norm(W - np.matmul(*factors_of(W, 10, C))) < 1e-4 * np.linalg.norm(W)


def test_inputs_that_are_always_zero_follow_the_plain_norm() -> None:
    W = matrix((60, 50), SPECTRA["slow"](50), seed=1, dtype=np.float64)
    X = inputs(300, 60, 1.0)
    X[:, 20:] = 0.0
    result = factor(W, 30, second_moment=X.T @ X)
    # 20 directions make the outputs exact; the other ten serve the rows that no input excites, and as well as can be.
    assert np.linalg.norm(X @ (W - result.left @ result.right)) <= 1e-3 * np.linalg.norm(X @ W)
    rest = W - result.left @ result.right
    V = np.linalg.svd(W[:20], full_matrices=True)[2][:20].T
    values = np.linalg.svd(W - (W @ V) @ V.T, compute_uv=False)
    assert np.linalg.norm(rest) == pytest.approx(float(np.linalg.norm(values[10:])), rel=1e-3)


def test_the_scale_of_the_moment_changes_nothing_but_the_weighted_energy() -> None:
    W = matrix((50, 40), SPECTRA["slow"](40), seed=1)
    C = inputs(200, 50, 10.0).T @ inputs(200, 50, 10.0)
    one = factor(W, 8, second_moment=C)
    assert one.weighted_energy is not None
    for scale in (1e-30, 1e30):
        other = factor(W, 8, second_moment=C * scale)
        np.testing.assert_allclose(other.left @ other.right, one.left @ one.right, atol=1e-5)
        assert other.weighted_energy == pytest.approx(one.weighted_energy * scale, rel=1e-5)
        np.testing.assert_allclose(other.singular_values, one.singular_values * scale**0.5, rtol=1e-4)


def test_a_prefix_and_a_target_in_the_weighted_norm() -> None:
    W = matrix((60, 50), SPECTRA["slow"](50), seed=1, dtype=np.float64)
    X = inputs(300, 60, 30.0)
    result = factor(W, error=0.2, second_moment=X.T @ X)
    assert result.weighted_error is not None
    assert result.weighted_error <= 0.2 < best(X, W, result.rank - 1)
    prefix = result.truncate(result.rank - 3)
    assert prefix.weighted_error == pytest.approx(best(X, W, prefix.rank), rel=1e-5)
    plain = float(np.linalg.norm(W - prefix.left @ prefix.right) / np.linalg.norm(W))
    assert prefix.relative_error == pytest.approx(plain, rel=1e-6)


def test_the_root_is_a_root_also_where_cholesky_fails() -> None:
    X = inputs(10, 30, 1.0)
    C = X.T @ X / 10.0
    slightly_negative = C - 1e-6 * np.eye(30)
    for moment in (C, slightly_negative):
        R = transposed_root(NUMPY, moment)
        np.testing.assert_allclose(R.T @ R, C, atol=5e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_diagonal_moment_may_be_given_as_its_diagonal(backend: Backend, dtype: type) -> None:
    W = matrix((60, 50), SPECTRA["slow"](50), seed=1, dtype=dtype)
    shares = np.geomspace(1.0, 1e-6, 60)
    short, full = (factor_on(backend, W, FactorRequest(12, second_moment=C)) for C in (shares, np.diag(shares)))
    np.testing.assert_allclose(short.left @ short.right, full.left @ full.right, atol=1e-4)
    assert short.weighted_error == pytest.approx(full.weighted_error, rel=1e-4)
    assert short.weighted_energy == pytest.approx(full.weighted_energy, rel=1e-5)


def test_bad_second_moments() -> None:
    W = np.ones((4, 3), np.float32)
    symmetric = np.eye(4)
    cases = [
        (np.eye(3), r"shape \(3, 3\): expected \(4, 4\)"),
        (symmetric * np.nan, "NaN or infinite"),
        (np.zeros((4, 4)), "trace of 0"),
        (symmetric + np.triu(np.ones((4, 4)), 1), "not symmetric"),
        (np.array([1.0, 1.0, 1.0, -0.5]), "-0.5 on its diagonal: expected none below 0"),
        (np.zeros(4), "trace of 0"),
        (np.array([1.0, 1.0, 1.0, np.nan]), "NaN or infinite"),
        (np.ones(3), r"shape \(3,\): expected \(4, 4\)"),
        (np.diag([1.0, 1.0, 1.0, -0.5]), "eigenvalue of -0.8 times its mean"),
    ]
    for moment, message in cases:
        with pytest.raises(FactorizationError, match=message):
            factor(W, 1, second_moment=moment)


def test_a_zero_weight_has_zero_errors_in_both_norms() -> None:
    result = factor(np.zeros((4, 3), np.float32), 1, second_moment=np.eye(4))
    assert (result.relative_error, result.weighted_error, result.weighted_energy) == (0.0, 0.0, 0.0)
