from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.cache import NO_CACHE
from lowrank_onnx.candidates import tail_energy
from lowrank_onnx.factor_families import shared_inputs, spool_shared
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.forms import PAIR, Shared
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Rearrangement, Site, WeightRef
from lowrank_onnx.weights import SharedWeight

OPTIONS = FactorizeOptions(method="svd", power_iterations=4, oversampling=0, seed=0, device="cpu")


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
