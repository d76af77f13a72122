from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.sensitivity.probe_feeds import FEEDS_TO_PROBE, PASSES_TO_PROBE, feeds_to_probe


@pytest.mark.parametrize(
    ("level", "probes", "feeds", "samples", "expected"),
    [
        ("fast", 6, 12, 12, 3),  # a pass and a half of 12 feeds over 6 probes
        ("fast", 39, 12, 12, 2),  # never fewer than 2
        ("fast", 39, 12, 384, 1),  # unless 1 has as many samples
        ("fast", 39, 12, 192, 2),
        ("fast", 4, 1000, 1000, 16),  # never more than 16
        ("fast", 4, 1, 1, 1),  # there is only one
        ("full", 28, 12, 12, 10),
        ("full", 115, 12, 12, 8),
        ("full", 115, 12, 1000, 4),
        ("full", 115, 6, 6, 6),
    ],
)
def test_few_weights_are_probed_on_more_feeds(
    level: Literal["fast", "full"], probes: int, feeds: int, samples: int, expected: int
) -> None:
    assert feeds_to_probe(level, probes, feeds, samples) == expected


@given(st.sampled_from(["fast", "full"]), st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 64))
def test_probes_never_take_more_than_their_passes_or_the_fewest_feeds(
    level: Any, probes: int, feeds: int, samples: int
) -> None:
    each = feeds_to_probe(level, probes, feeds, samples * feeds)
    assert 1 <= each <= feeds
    assert each <= FEEDS_TO_PROBE[level][0] or each * probes <= PASSES_TO_PROBE[level] * feeds
