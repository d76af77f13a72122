from __future__ import annotations

import math

import pytest

from lowrank_onnx.search import search_share


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
