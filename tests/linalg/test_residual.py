from __future__ import annotations

import numpy as np
import pytest

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.linalg import residual
from lowrank_onnx.linalg.backend import Backend
from lowrank_onnx.linalg.residual import residual_energy, residual_norm_estimate


@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
@pytest.mark.parametrize("shape", [(200, 150), (30, 90), (90, 12)])
def test_the_estimate_is_below_the_norm_and_near_it(backend: Backend, spectrum: str, shape: tuple[int, int]) -> None:
    W = matrix(shape, SPECTRA[spectrum](min(shape)), seed=0, dtype=np.float64)
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    left, right = backend.to_device(U[:, :4] * s[:4]), backend.to_device(np.ascontiguousarray(Vt[:4].T))
    estimate = residual_norm_estimate(backend, backend.to_device(W), left, right, seed=0)
    assert 0.9 * s[4] - 1e-12 * s[0] <= estimate <= s[4] * (1.0 + 1e-9) + 1e-12 * s[0]


def test_the_energy_is_that_of_the_pieces(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    W, left, right = (generator.standard_normal(shape) for shape in ((37, 20), (37, 3), (3, 20)))
    there = [backend.to_device(a) for a in (W, left, right)]
    whole = residual_energy(backend, *there)
    monkeypatch.setattr(residual, "RESIDUAL_BYTES", 20 * 8 * 5)
    assert residual_energy(backend, *there) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(float(np.sum((W - left @ right) ** 2)), rel=1e-12)
