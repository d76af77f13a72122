"""What stays is decided by all held-out samples together, and of few by a gain that no single one makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.attempt import attempt_model
from lowrank_onnx.evaluate import Feeds, load_feeds
from lowrank_onnx.evaluate.feeds import split_feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.refine.judges import FEW_SAMPLES, Judgement, Judges, find_judges, judge
from lowrank_onnx.types import Array
from tests.refine.builders import error_on, inputs, layers, workshop


def feeds(count: int, rows: int = 1) -> Feeds:
    given: list[Mapping[str, Array]] = [{"x": np.full((rows, 2), float(number), np.float32)} for number in range(count)]
    return load_feeds(given, (InputSpec("x", "float32", (None, 2)),))


def test_the_held_out_feeds_decide() -> None:
    calibration, held_out = split_feeds(feeds(16))
    assert find_judges(calibration, held_out, 4).feeds is held_out


def test_where_none_is_held_out_those_that_are_not_solved_for_decide() -> None:
    few = feeds(3)
    assert [int(feed["x"][0, 0]) for feed in find_judges(few, few, 3).feeds] == [2]


BEFORE = Judgement(0.5, (0.3, 0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    ("after", "many", "few"),
    [
        (Judgement(0.4, (0.2, 0.2, 0.1, 0.2)), True, True),
        (Judgement(0.4, (0.0, 0.3, 0.3, 0.3)), True, False),  # all comes from one feed
        (Judgement(0.4, (0.0, 0.35, 0.35, 0.35)), True, False),
        (Judgement(0.4, (0.01, 0.01, 0.31, 0.31)), True, True),
        (Judgement(0.4, (0.0, 0.0, 0.0, 0.0)), True, True),
        (Judgement(0.5, (0.2, 0.2, 0.2, 0.2)), False, False),
        (Judgement(0.4, (0.1, 0.1, 0.1, math.inf)), True, False),
    ],
)
def test_a_gain_on_few_samples_has_to_be_certain(after: Judgement, many: bool, few: bool) -> None:
    assert Judges(feeds(FEW_SAMPLES)).prefer(after, BEFORE) is many
    assert Judges(feeds(FEW_SAMPLES - 1)).prefer(after, BEFORE) is few


def test_one_feed_has_no_spread() -> None:
    judges = Judges(feeds(1))
    assert judges.prefer(Judgement(0.4, (0.16,)), Judgement(0.5, (0.25,)))
    assert not judges.prefer(Judgement(0.5, (0.25,)), Judgement(0.5, (0.25,)))


def test_a_typical_feed_has_to_gain() -> None:
    """Two that lose little in all, but ten times what they had, don't go with a gain on two others."""
    before, after = Judgement(0.5, (0.5, 0.4, 0.001, 0.001)), Judgement(0.4, (0.3, 0.25, 0.01, 0.01))
    assert Judges(feeds(FEW_SAMPLES)).prefer(after, before)
    assert not Judges(feeds(4)).prefer(after, before)
    assert Judges(feeds(4)).prefer(replace(after, squares=(0.3, 0.25, 0.001, 0.001)), before)


def test_errors_are_those_of_the_outputs(tmp_path: Path) -> None:
    given = inputs(16, rows=4)
    shop, choices = workshop(layers(3), given, tmp_path, 6)
    judges = find_judges(shop.original.calibration, shop.original.held_out, 4)
    found = judge(shop, attempt_model(shop, choices), KeptOutputs(shop.original.session, judges.feeds, tmp_path))
    assert found.error == error_on(shop, choices, shop.spool, list(shop.original.held_out))
    alone = [error_on(shop, choices, shop.spool, [feed]) for feed in judges.feeds]
    np.testing.assert_allclose(found.squares, np.square(alone), rtol=1e-12)
