from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend
from lowrank_onnx.linalg.leading import fit_leading, patch_problem
from lowrank_onnx.linalg.tucker import TuckerFactors, factor_tucker, tucker_errors
from lowrank_onnx.linalg.weighted import FLOOR
from tests.linalg.test_leading import SHAPE, kernel, missed, patches


def product(factors: TuckerFactors, shape: tuple[int, ...]) -> np.ndarray:
    parts = [part.astype(np.float64) for part in (factors.first, factors.core, factors.last)]
    found: np.ndarray = np.einsum("cs,skt,to->cko", *parts).reshape(shape)
    return found


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_kernel_is_exact_at_full_ranks(data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape = (data.draw(st.integers(1, 5)), *positions, data.draw(st.integers(1, 6)))
    W = kernel(shape)
    rank = min(shape[0], W.size // shape[0])
    X = patches(W.size // shape[-1], data.draw(st.sampled_from([3, 200])))
    rounding = 100 * X.shape[1] * np.finfo(np.float64).eps / FLOOR
    for moment in (None, X.T @ X):
        family = fit_leading(W, (0,), rank, second_moment=moment)
        factors = factor_tucker(family, (rank, shape[-1]))
        np.testing.assert_allclose(product(factors, shape), W, atol=rounding)
        assert factors.error < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_errors_of_all_ranks_are_those_of_the_factors(backend: Backend, dtype: str) -> None:
    W, X = kernel(dtype=dtype), patches(36)
    for moment, rows in ((None, np.eye(36)), (X.T @ X, X)):
        family = patch_problem(backend, W, moment).fit((0,), 6)
        ranks = (2, 3, 6)
        table = tucker_errors(family, ranks)
        assert table.shape == (3, 8)
        assert (np.diff(table, axis=0) <= 1e-12).all()
        assert (np.diff(table, axis=1) <= 1e-12).all()
        np.testing.assert_allclose(table[:, -1], family.errors[[1, 2, 5]], atol=1e-9)
        for row, rank_in in enumerate(ranks):
            for rank_out in (1, 4, 8):
                factors = factor_tucker(family, (rank_in, rank_out))
                assert factors.first.dtype == factors.core.dtype == factors.last.dtype == np.dtype(dtype)
                assert factors.error == pytest.approx(table[row, rank_out - 1], abs=1e-12)
                found = missed(rows, W, product(factors, SHAPE))
                assert found == pytest.approx(factors.error, rel=1e-3, abs=1e-12)


def test_at_all_channels_it_is_the_best_pair() -> None:
    W, X = kernel(), patches(36)
    values = np.linalg.svd(X @ W.reshape(36, 8), compute_uv=False) ** 2
    table = tucker_errors(fit_leading(W, (0,), 6, second_moment=X.T @ X), (6,))
    np.testing.assert_allclose(table[0], 1.0 - np.cumsum(values) / values.sum(), atol=1e-6)


def test_sweeps_only_gain_and_the_error_is_measured(backend: Backend) -> None:
    W, X = kernel(), patches(36)
    family = patch_problem(backend, W, X.T @ X).fit((0,), 6)
    found = [factor_tucker(family, (3, 4), sweeps=sweeps) for sweeps in (0, 1, 2, 30)]
    errors = [factors.error for factors in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * errors[0]
    assert missed(X, W, product(found[-1], SHAPE)) == pytest.approx(errors[-1], rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_change_nothing_and_are_spread_evenly(scale: float) -> None:
    W, X = kernel(), patches(36)
    factors = factor_tucker(fit_leading(W * scale, (0,), 3, second_moment=X.T @ X), (3, 4), sweeps=1)
    assert missed(X, W, product(factors, SHAPE) / scale) == pytest.approx(factors.error, rel=1e-6)
    norms = [np.linalg.norm(part) for part in (factors.first, factors.core, factors.last)]
    np.testing.assert_allclose(norms, norms[0])


def test_a_zero_weight_has_no_error() -> None:
    family = fit_leading(np.zeros(SHAPE, np.float32), (0,), 3, second_moment=np.eye(36))
    assert not tucker_errors(family, (1, 3)).any()
    factors = factor_tucker(family, (2, 3), sweeps=1)
    assert factors.error == 0.0
    assert not product(factors, SHAPE).any()


def test_bad_ranks() -> None:
    family = fit_leading(kernel(), (0,), 3)
    for ranks in ((0, 1), (4, 1), (1, 0), (1, 9)):
        with pytest.raises(FactorizationError, match=r"expected 1 to 3, the largest that was asked for, and 1 to 8"):
            factor_tucker(family, ranks)
    with pytest.raises(FactorizationError, match=r"ranks \(4, 8\)"):
        tucker_errors(family, (4,))
