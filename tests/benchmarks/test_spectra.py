from __future__ import annotations

import numpy as np
import pytest

from benchmarks.spectra import SPECTRA, matrix


@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
@pytest.mark.parametrize("shape", [(40, 30), (30, 50), (20, 20)])
def test_the_singular_values_are_those_asked_for(spectrum: str, shape: tuple[int, int]) -> None:
    values = SPECTRA[spectrum](min(shape))
    assert np.all(np.diff(values) <= 0.0)
    W = matrix(shape, values, seed=2, dtype=np.float64)
    np.testing.assert_allclose(np.linalg.svd(W, compute_uv=False), values, atol=1e-13 * values[0])
    single = matrix(shape, values, seed=2)
    assert single.dtype == np.float32
    assert single.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.svd(single, compute_uv=False), values, atol=1e-5 * values[0])
    assert np.count_nonzero(W) > 0.9 * W.size
