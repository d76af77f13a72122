from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.search import search_share, search_speedup


@pytest.mark.parametrize("limit", [0.9, 0.5, 0.05])
def test_finds_the_smallest_share_within_the_resolution(limit: float) -> None:
    share, steps = search_share(lambda s: 1.0 - s, limit, resolution=0.01)
    assert share is not None
    assert 0.0 <= share - (1.0 - limit) <= 0.01
    assert any(step.keep == share and step.accepted for step in steps)
    assert all(step.accepted == (step.error <= limit) for step in steps)


def test_nothing_accepted_gives_none_and_every_attempt() -> None:
    share, steps = search_share(lambda s: 1.0, 0.05)
    assert share is None
    assert steps
    assert not any(step.accepted for step in steps)


def test_nan_is_never_accepted() -> None:
    assert search_share(lambda s: math.nan, 0.5)[0] is None


def test_stays_above_the_floor() -> None:
    _, steps = search_share(lambda s: 0.0, 0.5, floor=0.3)
    assert min(step.keep for step in steps) > 0.3


@settings(max_examples=60)
@given(
    floor=st.floats(0.02, 0.9),
    bound=st.floats(0.0, 0.6),
    overhead=st.floats(0.5, 2.0),
    start=st.floats(-2.0, 0.99),
    target=st.floats(1.05, 3.0),
)
def test_a_speedup_that_is_there_is_found_and_one_that_is_not_is_refused(
    floor: float, bound: float, overhead: float, start: float, target: float
) -> None:
    """A model of which the share `bound` of the time isn't in the sites, and whose curves are off by `overhead`."""

    def race_at(share: float) -> tuple[float, float]:
        return 1.0 - share, 1.0 / (bound + (1.0 - bound) * share**overhead)

    share, steps = search_speedup(race_at, target, floor=floor, start=start)
    assert len(steps) <= 5
    assert all(step.accepted == (step.speedup is not None and step.speedup >= target) for step in steps)
    assert all(floor <= step.keep < 1.0 for step in steps)
    assert (share is None) == (race_at(floor)[1] < target)
    if share is None:
        assert steps[-1].keep == floor
    else:
        assert share == max(step.keep for step in steps if step.accepted)


def test_a_start_that_is_good_is_the_only_attempt() -> None:
    share, steps = search_speedup(lambda s: (0.1, 1.0 / s), 1.25, floor=0.1, start=0.78)
    assert share == 0.78
    assert [(step.keep, step.error, step.accepted) for step in steps] == [(0.78, 0.1, True)]


def test_a_speedup_beyond_what_was_asked_is_given_back() -> None:
    share, steps = search_speedup(lambda s: (0.0, 1.0 / s), 1.25, floor=0.1, start=0.3)
    assert steps[0].accepted
    assert share is not None
    assert 1.25 <= 1.0 / share <= 1.25 * 1.05


def test_the_floor_is_tried_before_a_speedup_is_called_out_of_reach() -> None:
    share, steps = search_speedup(lambda s: (0.0, 0.99), 1.25, floor=0.4, start=0.9)
    assert share is None
    assert [step.keep for step in steps] == [0.9, 0.4]


def test_a_speedup_that_is_not_a_number_is_never_accepted() -> None:
    share, steps = search_speedup(lambda s: (0.0, math.nan), 1.25, floor=0.4, start=0.9)
    assert share is None
    assert steps[-1].keep == 0.4


def test_attempts_are_limited_and_the_last_one_is_the_floor() -> None:
    share, steps = search_speedup(lambda s: (0.0, 1.2), 1.25, floor=0.01, start=0.9, max_attempts=3)
    assert share is None
    assert len(steps) == 3
    assert steps[-1].keep == 0.01
