from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.cache import NO_CACHE
from lowrank_onnx.candidates import tail_energy
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.factorize import (
    FactorizeOptions,
    factorize,
    measure_errors,
    shared_inputs,
    spool_shared,
    weight_seed,
)
from lowrank_onnx.forms import MATRIX, PAIR, Shared
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Rearrangement, Site, WeightRef
from lowrank_onnx.weights import SharedWeight

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


def bundle_of(matrices: list[np.ndarray]) -> tuple[list[SharedWeight], list[WeightRef]]:
    """Weights that read one tensor, as MatMuls write them."""
    refs = [WeightRef((), f"w{i}", "initializer", "float32", matrix.shape) for i, matrix in enumerate(matrices)]
    together = sum(matrix.shape[1] for matrix in matrices)
    groups = []
    for index, (ref, matrix) in enumerate(zip(refs, matrices, strict=True)):
        shape = (1, *matrix.shape)
        form = Shared("fc0", index == 0, len(matrices), together)
        site = Site(
            f"fc{index}",
            (),
            index,
            "MatMul",
            ref,
            Rearrangement(shape, (0, 1, 2), shape),
            (PAIR, form),
            "x",
            "y",
            "y",
            1,
        )
        groups.append(SharedWeight(ref, (site,)))
    return groups, refs


@pytest.mark.parametrize("weighted", [False, True])
def test_a_bundle_shares_its_left_factor_and_each_weight_has_its_own_error(tmp_path: Path, weighted: bool) -> None:
    generator = np.random.default_rng(0)
    matrices = [
        (scale * generator.standard_normal((20, out))).astype(np.float32) for scale, out in ((1.0, 12), (30.0, 8))
    ]
    S = np.linalg.cholesky(np.cov(generator.standard_normal((20, 60)) * np.arange(1.0, 21.0)[:, None]))
    moment = (S @ S.T)[None] if weighted else None
    groups, refs = bundle_of(matrices)
    spool = FactorSpool(tmp_path)
    curves = spool_shared(groups, matrices, 9, spool, OPTIONS, moment, NO_CACHE)
    norm = S.T if weighted else np.eye(20)
    errors = []
    for rank in (3, 9):
        stored = [spool.get(ref, group.forms[1], rank) for ref, group in zip(refs, groups, strict=True)]
        np.testing.assert_array_equal(stored[0].values("left"), stored[1].values("left"))
        for one, matrix, curve in zip(stored, matrices, curves, strict=True):
            missed = np.linalg.norm(norm @ (matrix - one.approximate()[0])) / np.linalg.norm(norm @ matrix)
            assert missed == pytest.approx(np.sqrt(tail_energy(curve, rank)), rel=1e-3)
            errors.append(missed**2)
    scaled = np.concatenate([norm @ matrix / np.linalg.norm(norm @ matrix) for matrix in matrices], axis=1)
    best = np.linalg.svd(scaled, compute_uv=False) ** 2
    assert sum(errors[:2]) == pytest.approx(best[3:].sum(), rel=1e-3)
    assert sum(errors[2:]) == pytest.approx(best[9:].sum(), rel=1e-3)


def test_a_zero_weight_in_a_bundle_has_no_error(tmp_path: Path) -> None:
    matrices = [np.zeros((6, 4), np.float32), np.eye(6, 5, dtype=np.float32)]
    groups, _ = bundle_of(matrices)
    first, second = spool_shared(groups, matrices, 4, FactorSpool(tmp_path), OPTIONS, None, NO_CACHE)
    assert tail_energy(first, 2) == 0.0
    assert tail_energy(second, 4) == pytest.approx(0.2, rel=1e-5)


def test_only_complete_bundles_are_factorized_together() -> None:
    groups, _ = bundle_of([np.eye(4, dtype=np.float32)] * 3)
    assert shared_inputs(groups) == ((0, 1, 2),)
    assert shared_inputs(groups[:2]) == ()
