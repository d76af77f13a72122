from __future__ import annotations

import functools
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from lowrank_onnx.evaluate.confidence import drop_at_most, share_at_least, share_at_most


@pytest.mark.parametrize(("agreeing", "samples"), [(0, 10), (9, 10), (10, 10), (1990, 2000), (2000, 2000)])
def test_the_bound_is_the_share_at_which_so_many_would_be_lucky(agreeing: int, samples: int) -> None:
    bound = share_at_least(agreeing, samples)
    assert 0.0 <= bound <= agreeing / samples
    if agreeing:
        assert binom.sf(agreeing - 1, samples, bound) == pytest.approx(0.05, rel=1e-6)


def test_the_upper_bound_mirrors_the_lower_one() -> None:
    assert share_at_most(3, 50) == pytest.approx(1.0 - share_at_least(47, 50))
    assert binom.cdf(3, 50, share_at_most(3, 50)) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("lost", "gained", "samples"), [(3, 0, 2), (2, 2, 3), (-1, 1, 10), (0, 0, 0)])
def test_what_is_no_draw_is_refused(lost: int, gained: int, samples: int) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        drop_at_most(lost, gained, samples)


def test_a_confidence_is_a_share() -> None:
    with pytest.raises(ValueError, match="confidence"):
        share_at_least(1, 2, 1.0)


SAMPLES = 16


@functools.cache
def every_bound() -> dict[tuple[int, int], float]:
    outcomes = [(b, c) for b, c in product(range(SAMPLES + 1), repeat=2) if b + c <= SAMPLES]
    return {(b, c): drop_at_most(b, c, SAMPLES, 0.9) for b, c in outcomes}


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.05, 0.05), (0.2, 0.1), (0.02, 0.0), (0.0, 0.1), (0.3, 0.3), (0.1, 0.02)]
)
def test_the_bound_of_a_drop_covers_the_truth_as_often_as_it_says(lost: float, gained: float) -> None:
    """Exactly, by the probability of every outcome."""
    covered = sum(
        float(multinomial.pmf([b, c, SAMPLES - b - c], SAMPLES, [lost, gained, 1.0 - lost - gained]))
        for (b, c), bound in every_bound().items()
        if bound >= lost - gained - 1e-9
    )
    assert covered >= 0.9 - 1e-9


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 300))
def test_a_drop_is_at_most_something_beyond_what_was_counted(lost: int, gained: int, samples: int) -> None:
    bound = drop_at_most(lost, gained, samples)
    assert (lost - gained) / samples < bound <= 1.0
    assert drop_at_most(lost + 1, gained, samples) > bound
    assert drop_at_most(lost, gained, samples, 0.99) > bound
    assert drop_at_most(lost, gained, samples + 300) < max(bound, 0.02)


def test_counting_on_the_same_samples_is_sharper_than_two_bounds() -> None:
    assert drop_at_most(8, 9, 1000) < 0.01
    assert 0.95 - share_at_least(951, 1000) > 0.01


def test_models_that_agree_on_every_sample_still_may_differ() -> None:
    assert drop_at_most(0, 0, 1000) == pytest.approx(0.0041, abs=2e-4)
    assert np.isclose(drop_at_most(10, 0, 10), 1.0)
