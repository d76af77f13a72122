from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.factorize import (
    FactorizeOptions,
    factorize,
    measure_errors,
    weight_seed,
)
from lowrank_onnx.forms import MATRIX, PAIR
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Rearrangement, WeightRef

OPTIONS = FactorizeOptions(method="svd", power_iterations=4, oversampling=0, seed=0, device="cpu")
CONV = Rearrangement(split=(2, 6, 4, 3, 3), order=(0, 2, 3, 4, 1), merged=(2, 36, 6))


def conv_weight(dtype: str = "float32") -> tuple[np.ndarray, WeightRef]:
    values = np.random.default_rng(0).standard_normal((12, 4, 3, 3))
    stored = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return stored, WeightRef((), "w", "initializer", dtype, stored.shape)


def test_full_rank_is_exact_for_every_group() -> None:
    stored, weight = conv_weight()
    factors, spectrum = factorize(stored, weight, CONV, 6, OPTIONS)
    assert factors.left.shape == (2, 36, 6)
    assert factors.right.shape == (2, 6, 6)
    assert factors.relative_error < 1e-6
    matrices = stored.reshape(2, 6, 36).transpose(0, 2, 1)
    np.testing.assert_allclose(factors.left @ factors.right, matrices, atol=1e-5)
    assert spectrum.energy == pytest.approx(float(np.sum(stored.astype(np.float64) ** 2)), rel=1e-6)


def test_errors_are_measured_on_what_is_stored(tmp_path: Path) -> None:
    stored, weight = conv_weight()
    factors, spectrum = factorize(stored, weight, CONV, 6, OPTIONS)
    spool = FactorSpool(tmp_path)
    spool.put_nested(weight, MATRIX, PAIR, factors)
    error, spectral = measure_errors(stored, CONV, spool.get(weight, PAIR, 2).approximate())
    kept = float(np.sum(np.square(spectrum.values[:, :2], dtype=np.float64)))
    assert error == pytest.approx(np.sqrt(1 - kept / spectrum.energy), rel=1e-4)
    assert 0 < spectral < 1


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2e-3), ("bfloat16", 1e-2), ("float64", 1e-9)])
def test_rounding_to_the_stored_dtype_is_part_of_the_error(tmp_path: Path, dtype: str, rounding: float) -> None:
    stored, weight = conv_weight(dtype)
    factors, _ = factorize(stored, weight, CONV, 6, OPTIONS)
    spool = FactorSpool(tmp_path)
    spool.put_nested(weight, MATRIX, PAIR, factors)
    error, _ = measure_errors(stored, CONV, spool.get(weight, PAIR, 6).approximate())
    assert 0 < error < rounding


def test_a_weight_that_is_not_finite_is_named() -> None:
    stored, weight = conv_weight()
    stored[0, 0, 0, 0] = np.nan
    with pytest.raises(FactorizationError, match="weight 'w'"):
        factorize(stored, weight, CONV, 2, OPTIONS)


def test_seeds_differ_by_weight_group_and_run_and_stay_in_range() -> None:
    _, weight = conv_weight()
    other = WeightRef((), "v", "initializer", "float32", weight.shape)
    seeds = [weight_seed(w, s, g) for w in (weight, other) for s in (0, 1) for g in (0, 1)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert weight_seed(weight, 0, 0) == seeds[0]
