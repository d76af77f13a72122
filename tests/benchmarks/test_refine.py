from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planning_cases import Case
from benchmarks.refine import (
    Alone,
    ModelResult,
    Point,
    curve_feeds,
    one_sample_feeds,
    resumed,
    save,
)
from benchmarks.refine_cost import Cost
from benchmarks.refine_report import PLANNED, REFINED, WHITENED, markdown, verdict


def result(after: float) -> dict[str, Any]:
    points = [
        Point(PLANNED, 0.45, 16, 0.08, {"top-1": 0.9}),
        Point(REFINED, 0.45, 16, after, {"top-1": 0.9}),
    ]
    cost = Cost(0.45, 16, 12, 4.0, 1.5, 2.4, 0.5, 1000.0, 6, 7, 0.05, 0.03, 1.0, (4.5, 5.0, 6.0))
    alone = Alone(0.45, 8, 0.05, 0.08, after, 0.07, 0.04)
    around = {"date": "2026-01-01", "machine": "a machine"}
    return asdict(ModelResult("vgg", "judged on images", around, {"top-1": 0.94}, points, [], [cost], [alone]))


def test_the_verdict_says_where_it_is_worse() -> None:
    assert verdict(result(0.06)) == (
        "Nowhere worse than the planner's. Error relative to the planner's: 0.75 (0.45, 16 feeds)."
    )
    assert verdict(result(0.1)).startswith("Worse than the planner's at 0.45 of the MACs with 16 feeds.")


def test_the_verdict_holds_it_against_whitening_too() -> None:
    found = result(0.06)
    found["points"].append(asdict(Point(WHITENED, 0.45, 16, 0.1, {"top-1": 0.9})))
    assert verdict(found).endswith(" Relative to whitened factors with energy ranks: 0.60 (0.45, 16 feeds).")


def test_the_verdict_says_how_many_feeds_halve_it() -> None:
    found = result(0.06)
    for feeds, after in ((512, 0.06), (2048, 0.05)):
        found["curve"] += [
            asdict(Point(way, 0.45, feeds, error, {})) for way, error in ((PLANNED, 0.1), (REFINED, after))
        ]
    assert "what is left is half of it or less from 2048 feeds on." in verdict(found)
    found["curve"] = found["curve"][:2]
    assert "what is left is more than half of it with any number." in verdict(found)


def test_the_tables_have_every_figure() -> None:
    text = markdown({"models": [result(0.06)]})
    assert "| 0.45 | refined | 0.0600 | 0.9000 |" in text
    assert (
        "| 0.45 | 16 | 12 | 6 of 7 | 0.0500 -> 0.0300 | 0.500 | 3.0 | 2.0 | 5.0 (4.5 to 6.0) | 2.40 | 8.0 | 1000 |"
        in text
    )


def test_what_the_weights_do_one_by_one_is_told() -> None:
    told = "make 0.0500; all of them as planned 0.0800; refined 0.0600."
    found = result(0.06)
    assert f"{told} On the feeds to calibrate with: planned 0.0700; refined 0.0400." in markdown({"models": [found]})
    del found["alone"][0]["seen_planned"]  # as older results are
    assert told in markdown({"models": [found]})


def test_saved_results_are_taken_up_where_the_circumstances_are_the_same(tmp_path: Path) -> None:
    around = {"date": "2026-01-01", "machine": "a machine", "versions": {"lowrank-onnx": "1"}}
    point = Point(PLANNED, 0.45, 16, 0.06, {"top-1": 0.9})
    saved = ModelResult("vgg", "judged on images", around, {"top-1": 0.94}, [point], [], [], [Alone(0.45, 8, 1, 2, 3)])
    save(tmp_path, saved)
    fresh = replace(saved, circumstances={**around, "date": "2026-01-02"}, points=[], alone=[])
    assert resumed(tmp_path, fresh) == saved
    other = replace(fresh, circumstances={**around, "machine": "another"})
    assert resumed(tmp_path, other) is other
    assert resumed(tmp_path / "elsewhere", fresh) is fresh


def test_more_samples_than_a_case_has_come_from_elsewhere() -> None:
    own, more = ({"x": np.zeros((3, 2))},), ({"x": np.ones((1, 2))},) * 4
    case = Case("a", Path(), own, (), (), (), lambda outputs: {}, (), "", lambda count: more[:count])
    assert [len(curve_feeds(case, count)) for count in (2, 3, 4)] == [2, 3, 4]
    assert all(feed["x"].sum() == 0 for feed in curve_feeds(case, 3))
    assert all(feed["x"].sum() == 2 for feed in curve_feeds(case, 4))
    assert curve_feeds(replace(case, more=lambda count: ()), 4) == ()


def test_feeds_are_cut_into_samples() -> None:
    feeds = ({"x": np.arange(6.0).reshape(3, 2)}, {"x": np.arange(6.0, 8.0).reshape(1, 2)})
    found = one_sample_feeds(feeds, 2)
    assert [feed["x"].tolist() for feed in found] == [[[0.0, 1.0]], [[4.0, 5.0]]]
    assert len(one_sample_feeds(feeds, 9)) == 4
