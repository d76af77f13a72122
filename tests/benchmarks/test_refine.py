from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.refine import PLANNED, REFINED, Cost, ModelResult, Point, markdown, one_sample_feeds, verdict


def result(after: float) -> dict[str, Any]:
    points = [Point(PLANNED, 0.45, 16, 0.08, {"top-1": 0.9}), Point(REFINED, 0.45, 16, after, {"top-1": 0.9})]
    cost = Cost(0.45, 12, 14.0, 0.5, 1000.0, 6, 7, 0.05, 0.03)
    around = {"date": "2026-01-01", "machine": "a machine"}
    return asdict(ModelResult("vgg", "judged on images", around, {"top-1": 0.94}, points, [], [cost]))


def test_the_verdict_says_where_it_is_worse() -> None:
    assert verdict(result(0.06)) == (
        "Nowhere worse than the planner's. Error relative to the planner's: 0.75 (0.45, 16 feeds)."
    )
    assert verdict(result(0.1)).startswith("Worse than the planner's at 0.45 of the MACs with 16 feeds.")


def test_the_tables_have_every_figure() -> None:
    text = markdown({"models": [result(0.06)]})
    assert "| 0.45 | refined | 0.0600 | 0.9000 |" in text
    assert "| 0.45 | 12 | 6 of 7 | 0.0500 -> 0.0300 | 14.0 | 28.0 | 1000 |" in text


def test_feeds_are_cut_into_samples() -> None:
    feeds = ({"x": np.arange(6.0).reshape(3, 2)}, {"x": np.arange(6.0, 8.0).reshape(1, 2)})
    found = one_sample_feeds(feeds, 2)
    assert [feed["x"].tolist() for feed in found] == [[[0.0, 1.0]], [[4.0, 5.0]]]
    assert len(one_sample_feeds(feeds, 9)) == 4
