from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.factorize import FactorizeOptions, FactorSpool, factorize, measure_errors, weight_seed
from lowrank_onnx.types import NewTensor, Rearrangement, WeightRef

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


def test_a_prefix_of_the_spool_is_the_smaller_rank(tmp_path: Path) -> None:
    stored, weight = conv_weight()
    factors, spectrum = factorize(stored, weight, CONV, 6, OPTIONS)
    spool = FactorSpool(tmp_path)
    spool.put(weight, factors)
    assert weight in spool
    left, right = (spool.get(weight).read(part, 2) for part in ("left", "right"))
    np.testing.assert_array_equal(left, factors.left[:, :, :2])
    np.testing.assert_array_equal(right, factors.right[:, :2])
    error, spectral = measure_errors(stored, CONV, left, right)
    kept = float(np.sum(np.square(spectrum.values[:, :2], dtype=np.float64)))
    assert error == pytest.approx(np.sqrt(1 - kept / spectrum.energy), rel=1e-4)
    assert 0 < spectral < 1


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2e-3), ("bfloat16", 1e-2), ("float64", 1e-9)])
def test_factors_are_read_in_the_stored_dtype_and_their_rounding_is_measured(
    tmp_path: Path, dtype: str, rounding: float
) -> None:
    stored, weight = conv_weight(dtype)
    factors, _ = factorize(stored, weight, CONV, 6, OPTIONS)
    spool = FactorSpool(tmp_path)
    spool.put(weight, factors)
    left, right = (spool.get(weight).read(part, 6) for part in ("left", "right"))
    assert left.dtype.name == right.dtype.name == dtype
    error, _ = measure_errors(stored, CONV, left, right)
    assert 0 < error < rounding


def test_new_tensors_come_in_their_stored_layout(tmp_path: Path) -> None:
    stored, weight = conv_weight()
    factors, _ = factorize(stored, weight, CONV, 6, OPTIONS)
    spool = FactorSpool(tmp_path)
    spool.put(weight, factors)
    arrangement = Rearrangement((2, 36, 3), (0, 2, 1), (6, 4, 3, 3))
    new = NewTensor("w.left", (), "float32", (6, 4, 3, 3), weight, "left", arrangement)
    expected = factors.left[:, :, :3].transpose(0, 2, 1).reshape(6, 4, 3, 3)
    np.testing.assert_array_equal(spool.tensor(new, 3), expected)


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
