from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowrank_onnx.candidates import (
    DENSE,
    PlannedWeight,
    find_candidates,
    maybe_faster,
    natural_rank_multiple,
    tail_energy,
    useful_ranks,
)
from lowrank_onnx.forms import MATRIX, PAIR, TIED
from lowrank_onnx.types import Curves, MatrixShape, Spectrum


def spectrum_of(weight: np.ndarray) -> Curves:
    values = np.linalg.svd(weight, compute_uv=False)
    return {MATRIX: Spectrum(values=values[None], energy=float(np.sum(weight**2)))}


def test_candidates_are_cheapest_first_with_dense_last_and_exact_errors() -> None:
    matrix = np.random.default_rng(0).standard_normal((96, 64))
    weight = PlannedWeight("w", MatrixShape(1, 96, 64), (PAIR,), positions=10)
    candidates = find_candidates(weight, spectrum_of(matrix), rank_multiple=8)
    assert [c.rank for c in candidates] == [8, 16, 24, 32, None]
    assert candidates[-1].form == DENSE
    assert candidates[-1].error == 0.0
    assert [c.parameters for c in candidates] == [8 * 160, 16 * 160, 24 * 160, 32 * 160, 96 * 64]
    assert [c.macs for c in candidates] == [10 * c.parameters for c in candidates]
    u, s, vt = np.linalg.svd(matrix)
    for candidate in candidates[:-1]:
        assert candidate.rank is not None
        r = candidate.rank
        tail = np.linalg.norm(matrix - (u[:, :r] * s[:r]) @ vt[:r]) ** 2 / np.linalg.norm(matrix) ** 2
        assert candidate.error == pytest.approx(tail, rel=1e-9)


def test_macs_are_unknown_where_no_run_was_observed() -> None:
    weight = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), positions=None)
    spectrum = spectrum_of(np.eye(64))
    assert all(c.macs is None for c in find_candidates(weight, spectrum, None))


def test_damage_turns_tails_into_errors() -> None:
    spectrum = spectrum_of(np.diag(np.arange(64.0)))
    plain = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), None)
    heavy = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), None, damage=lambda tail: 3.0 * tail)
    for a, b in zip(find_candidates(plain, spectrum, 8), find_candidates(heavy, spectrum, 8), strict=True):
        assert b.error == pytest.approx(3.0 * a.error)


@pytest.mark.parametrize(("side", "multiple"), [(4096, 16), (128, 16), (64, 8), (32, 4), (16, 2), (8, 1), (2, 1)])
def test_natural_multiple_leaves_a_grid_to_choose_from(side: int, multiple: int) -> None:
    assert natural_rank_multiple(MatrixShape(1, side, side)) == multiple


def test_a_multiple_beyond_the_break_even_leaves_only_dense() -> None:
    weight = PlannedWeight("w", MatrixShape(1, 16, 16), (PAIR,), None)
    assert useful_ranks(weight, PAIR, 64) == ()


def test_tail_energy_refuses_ranks_that_were_not_computed() -> None:
    with pytest.raises(ValueError, match="rank 5 is beyond the 4 singular values"):
        tail_energy(Spectrum(np.ones((1, 4)), 4.0), 5)


def test_zero_weight_has_no_tail() -> None:
    assert tail_energy(Spectrum(np.zeros((1, 4)), 0.0), 2) == 0.0


def timed(noise: float) -> PlannedWeight:
    """A weight that takes 4 ms dense and 0.125 ms for each rank."""
    return PlannedWeight(
        "w", MatrixShape(1, 96, 64), (PAIR,), 10, latency=lambda f, r: 4.0 if r is None else r / 8, noise=noise
    )


def test_candidates_have_the_measured_latency() -> None:
    spectrum = spectrum_of(np.eye(96, 64))
    assert [c.latency_ms for c in find_candidates(timed(0.0), spectrum, 8)] == [1.0, 2.0, 3.0, 4.0, 4.0]
    unmeasured = PlannedWeight("w", MatrixShape(1, 96, 64), (PAIR,), 10)
    assert all(c.latency_ms is None for c in find_candidates(unmeasured, spectrum, 8))


@pytest.mark.parametrize(
    ("noise", "ranks"), [(0.0, [8, 16, 24, None]), (0.3, [8, 16, None]), (0.6, [8, None]), (0.8, [None])]
)
def test_ranks_that_are_not_faster_by_more_than_the_noise_can_be_left_out(noise: float, ranks: list[int]) -> None:
    spectrum = spectrum_of(np.eye(96, 64))
    assert [c.rank for c in find_candidates(timed(noise), spectrum, 8, only_faster=True)] == ranks
    assert len(find_candidates(timed(noise), spectrum, 8)) == 5


def test_what_was_not_measured_is_not_left_out() -> None:
    assert maybe_faster(PlannedWeight("w", MatrixShape(1, 96, 64), (PAIR,), 10, noise=0.9), "pair", 8)


def test_a_lookup_beside_a_product_multiplies_by_the_second_factor_alone() -> None:
    shape = MatrixShape(1, 100, 20)
    weight = PlannedWeight("w", shape, (TIED,), positions=12, lookups=5)
    assert weight.dense_macs == 7 * 2000
    assert weight.macs(TIED, 3) == 7 * 3 * 120 + 5 * 3 * 20
    assert replace(weight, positions=None).macs(TIED, 3) is None
