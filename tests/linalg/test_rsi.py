from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.linalg import factor
from lowrank_onnx.linalg.sketch import draw_gaussian


def published(W: np.ndarray, rank: int, q: int, seed: int) -> np.ndarray:
    """The algorithm of arXiv 2604.02659 in the order of its lines, with SciPy's own QR and SVD."""
    Y = draw_gaussian(W.shape[1], rank, seed, np.dtype(W.dtype))
    for _ in range(q):
        X = scipy.linalg.qr(W @ Y, mode="economic")[0]
        Y = W.T @ X
    U, s, Vt = scipy.linalg.svd(Y.T, full_matrices=False)
    return np.asarray(((X @ U) * s) @ Vt)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.data())
def test_it_is_the_published_algorithm(rows: int, columns: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    q = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32))
    W = np.random.default_rng(seed).standard_normal((rows, columns))
    result = factor(W, rank, method="rsi", power_iterations=q, seed=seed)
    np.testing.assert_allclose(result.left @ result.right, published(W, rank, q, seed), atol=1e-9)


def test_one_power_iteration_is_rsvd_to_the_byte() -> None:
    W = matrix((80, 60), SPECTRA["slow"](60), seed=0)
    one, rsvd = factor(W, 8, method="rsi", power_iterations=1), factor(W, 8, method="rsvd")
    assert one.left.tobytes() == rsvd.left.tobytes()
    assert one.right.tobytes() == rsvd.right.tobytes()
    # RSVD of Halko, Martinsson and Tropp: Q = qr(W Omega), then W ~ Q (Q' W).
    Q = np.linalg.qr(W @ draw_gaussian(60, 8, 0, W.dtype))[0]
    np.testing.assert_allclose(rsvd.left @ rsvd.right, Q @ (Q.T @ W), atol=1e-5)
    assert rsvd.solver == "rsvd(q=1, p=0)"


def test_more_power_iterations_and_columns_are_more_accurate() -> None:
    W = matrix((400, 300), SPECTRA["slow"](300), seed=0)
    errors = [factor(W, 30, method="rsi", power_iterations=q).relative_error for q in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    wide = factor(W, 30, method="rsi", power_iterations=2, oversampling=10)
    assert wide.relative_error < errors[1]
    assert wide.solver == "rsi(q=2, p=10)"
    assert wide.rank == 30


def test_oversampling_ends_at_the_smaller_side() -> None:
    W = matrix((20, 12), SPECTRA["slow"](12), seed=0)
    result = factor(W, 10, method="rsi", oversampling=50)
    assert result.solver == "rsi(q=4, p=2)"
    assert result.spectral_error * result.spectral_norm == pytest.approx(SPECTRA["slow"](12)[10], rel=1e-3)
