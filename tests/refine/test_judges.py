"""What stays is decided by all held-out samples together, and of few by a gain that no single one makes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.attempt import attempt_model
from lowrank_onnx.evaluate import Feeds, load_feeds
from lowrank_onnx.evaluate.feeds import split_feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.forms import PAIR
from lowrank_onnx.model_io import Model
from lowrank_onnx.refine.judges import FEW_SAMPLES, LEAST_GAIN, Judgement, Judges, find_judges, judge
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


@pytest.mark.parametrize("count", [1, FEW_SAMPLES])
def test_a_gain_has_to_be_worth_it(count: int) -> None:
    judges = Judges(feeds(count))
    for share, worth in ((1.0 - 1.01 * LEAST_GAIN, True), (1.0 - 0.99 * LEAST_GAIN, False)):
        assert judges.prefer(Judgement(0.5 * share, (0.25 * share**2,)), Judgement(0.5, (0.25,))) is worth


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
    expected = KeptOutputs(shop.original.session, judges.feeds, tmp_path)
    (found,) = judge(shop, [attempt_model(shop, choices)], expected)
    assert found.error == error_on(shop, choices, shop.spool, list(shop.original.held_out))
    alone = [error_on(shop, choices, shop.spool, [feed]) for feed in judges.feeds]
    np.testing.assert_allclose(found.squares, np.square(alone), rtol=1e-12)


@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize("most_in_memory", [0, 2**20])
@pytest.mark.parametrize("most_kept", [0, 2**20])
def test_each_model_has_the_factors_of_its_turn(
    cores: int, most_in_memory: int, most_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr("lowrank_onnx.attempt.MOST_IN_MEMORY", most_in_memory)
    shop, choices = workshop(layers(3), inputs(16, rows=4), tmp_path, 6)
    tried = replace(shop, spool=shop.spool.branch())
    candidate = attempt_model(tried, choices)
    weights = [group.weight for group in shop.groups]
    spools = []

    def candidates() -> Iterator[Model]:
        for place in (0, 1, 2, 1, 0):
            halves = {part: values / 2 for part, values in shop.spool.get(weights[place], PAIR, 6).parts().items()}
            halved = shop.spool.branch()
            halved.put(weights[place], PAIR, 6, halves, "halved")
            tried.spool.adopt(halved.get(weights[place], PAIR, 6), weights[place])
            spools.append(tried.spool.branch())
            yield candidate

    held_out = shop.original.held_out
    found = judge(tried, candidates(), KeptOutputs(shop.original.session, held_out, tmp_path, most_kept))
    assert [one.error for one in found] == [error_on(shop, choices, spool, list(held_out)) for spool in spools]
    assert len({one.error for one in found}) == 3  # what is put in again changes nothing
