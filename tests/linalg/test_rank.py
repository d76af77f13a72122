from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.rank import (
    RankTarget,
    smallest_rank_for_spectral,
    smallest_rank_for_tail,
    tail_shares,
)

SPECTRA = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30).map(lambda v: np.sort(np.array(v))[::-1])


@given(SPECTRA, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_rank_is_the_smallest_that_reaches_the_share(values: np.ndarray, share: float, kept: float) -> None:
    energy = float(np.sum(values**2)) * (1.0 + kept)
    exact = np.array([energy - np.sum(values[:r] ** 2) for r in range(values.size + 1)]) / energy
    np.testing.assert_allclose(tail_shares(values, energy), exact, atol=1e-12)
    rank = smallest_rank_for_tail(values, energy, share)
    if rank is None:
        assert exact[-1] > share - 1e-12
    else:
        assert exact[rank] <= share + 1e-12
        assert rank == 1 or exact[rank - 1] > share - 1e-12


@given(SPECTRA, st.floats(1e-3, 1.0))
def test_the_first_dropped_value_is_small_enough(values: np.ndarray, share: float) -> None:
    rank = smallest_rank_for_spectral(values, share)
    if rank is None:
        assert values[-1] > share * values[0]
    else:
        assert rank == values.size or values[rank] <= share * values[0]
        assert rank == 1 or values[rank - 1] > share * values[0]


def test_tails_far_below_rounding_of_the_energy_are_resolved() -> None:
    values = np.array([1.0, 1e-10, 1e-11])
    tails = tail_shares(values, float(np.sum(values**2)))
    assert tails[1] == pytest.approx(1.01e-20, rel=1e-6)
    assert tails[3] == 0.0


def test_each_target_has_its_rule() -> None:
    values = np.array([3.0, 2.0, 1.0])
    assert RankTarget(error=0.3).smallest_rank(values, 14.0) == 2
    assert RankTarget(energy=0.9).smallest_rank(values, 14.0) == 2
    assert RankTarget(spectral=0.5).smallest_rank(values, 14.0) == 2
    assert RankTarget(error=0.3).smallest_rank(values, 100.0) is None
    assert RankTarget(energy=1e-9).smallest_rank(values, 14.0) == 1
    assert RankTarget(error=1.0).smallest_rank(np.zeros(3), 0.0) == 1


def test_exactly_one_target_in_its_range() -> None:
    for arguments in ({}, {"error": 0.1, "spectral": 0.1}):
        with pytest.raises(FactorizationError, match="given: expected one of error, energy, spectral"):
            RankTarget(**arguments)
    for arguments in ({"error": -0.1}, {"error": float("nan")}, {"energy": 1.1}, {"spectral": 0.0}):
        with pytest.raises(FactorizationError, match="expected a share above 0 and at most 1"):
            RankTarget(**arguments)
