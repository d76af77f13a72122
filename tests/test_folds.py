from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.errors import ModelError
from lowrank_onnx.evaluate import load_feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.folds import (
    ENOUGH_FOR_MOMENTS,
    ENOUGH_SAMPLES,
    MOST_MACS,
    MOST_TRIED,
    PARTS,
    TOLD_BY,
    Fold,
    MirroredMoments,
    OtherMoments,
    fold_feeds,
    samples_to_try,
    weights_short_of_rows,
)
from lowrank_onnx.model_io import Model, load_model
from lowrank_onnx.moments import Moment
from lowrank_onnx.observed import observe
from lowrank_onnx.progress import SILENT
from lowrank_onnx.types import Array, WeightRef
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import sites_of
from tests.test_calibration import linear, rows

MODEL = load_model(linear(np.random.default_rng(1).standard_normal((24, 16))))
SITES = sites_of(MODEL.skeleton)
GROUPS = group_by_weight(SITES)
WEIGHT = GROUPS[0].weight


def moment_of(x: Array, mirrored: Moment | None = None) -> Moment:
    wide = x.astype(np.float64)
    return Moment((wide.T @ wide / len(x))[None], wide.mean(axis=0)[None], len(x), len(x), mirrored)


def folds_of(
    samples: int,
    directory: Path,
    tried: int = MOST_TRIED,
    moments: Mapping[WeightRef, Moment | str] | None = None,
    model: Model = MODEL,
) -> tuple[Fold, ...]:
    sites = sites_of(model.skeleton)
    x = rows("plain", samples, sites[0].shape.in_features, 0)
    observed = observe(model, sites, [{"x": x}], provider="cpu", seed=0)
    return fold_feeds(
        model,
        group_by_weight(sites),
        observed.run,
        observed.session.inputs,
        observed.feeds,
        seed=0,
        directory=directory,
        progress=SILENT,
        tried=tried,
        moments=moments or {},
    )


def test_each_part_is_held_out_of_what_the_others_show(tmp_path: Path) -> None:
    x = rows("plain", 9, 24, 0)
    parts = folds_of(9, tmp_path)
    assert len(parts) == PARTS
    for number, fold in enumerate(parts):
        own = np.concatenate([feed["x"] for feed in fold.tried])
        np.testing.assert_array_equal(own, x[number::PARTS])
        assert len(own) <= MOST_TRIED
        others = OtherMoments(parts, number)
        assert list(others) == [WEIGHT]
        assert len(others) == 1
        rest = np.concatenate([x[other::PARTS] for other in range(PARTS) if other != number])
        np.testing.assert_allclose(others[WEIGHT].second_moment, moment_of(rest).second_moment, rtol=1e-4, atol=1e-7)
        assert others[WEIGHT].rows == len(rest)


def test_enough_samples_are_taken_together_and_too_few_are_not_parted(tmp_path: Path) -> None:
    assert folds_of(ENOUGH_SAMPLES, tmp_path) == ()
    assert len(folds_of(ENOUGH_SAMPLES - 1, tmp_path)) == PARTS
    (tmp_path / "few").mkdir()
    assert folds_of(PARTS - 1, tmp_path / "few") == ()


def test_without_trials_fewer_samples_are_enough(tmp_path: Path) -> None:
    assert folds_of(ENOUGH_FOR_MOMENTS, tmp_path, tried=0) == ()
    assert [fold.tried for fold in folds_of(ENOUGH_FOR_MOMENTS - 1, tmp_path, tried=0)] == [()] * PARTS


@pytest.mark.parametrize(("samples", "tried"), [(ENOUGH_SAMPLES, MOST_TRIED), (ENOUGH_FOR_MOMENTS, 0)])
def test_weights_seen_at_fewer_rows_than_features_are_parted_whatever_the_samples(
    samples: int, tried: int, tmp_path: Path
) -> None:
    wide = 2 * samples
    model = load_model(linear(np.random.default_rng(1).standard_normal((wide, 16))))
    (group,) = group_by_weight(sites_of(model.skeleton))
    x = rows("plain", samples, wide, 0)
    parts = folds_of(samples, tmp_path, tried, {group.weight: moment_of(x)}, model)
    assert [(fold.tried, fold.held_out) for fold in parts] == [((), True)] * TOLD_BY + [((), False)]
    of_parts = [x[number::PARTS] for number in range(PARTS)]
    expected = [*of_parts[:TOLD_BY], np.concatenate(of_parts[TOLD_BY:])]
    for fold, rows_of_part in zip(parts, expected, strict=True):
        found = fold.shown[group.weight]
        assert isinstance(found, Moment)
        np.testing.assert_allclose(found.second_moment, moment_of(rows_of_part).second_moment, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.mean, moment_of(rows_of_part).mean, rtol=1e-3, atol=1e-6)


def test_a_weight_that_the_other_samples_do_not_reach_is_not_known_there(tmp_path: Path) -> None:
    """As where an expert sees rows on some feeds alone."""
    model = load_model(linear(np.random.default_rng(1).standard_normal((2 * ENOUGH_SAMPLES, 16))))
    (group,) = group_by_weight(sites_of(model.skeleton))
    seen = ENOUGH_SAMPLES * TOLD_BY // PARTS
    whole = moment_of(rows("plain", seen, 2 * ENOUGH_SAMPLES, 0))
    parts = folds_of(ENOUGH_SAMPLES, tmp_path, moments={group.weight: whole}, model=model)
    assert isinstance(parts[-1].shown[group.weight], str)


@pytest.mark.parametrize(
    "moment",
    [
        replace(moment_of(rows("plain", 23, 24, 0)), rows=24),
        replace(moment_of(rows("plain", 23, 24, 0)), second_moment=np.ones((1, 24))),
        moment_of(rows("plain", 23, 24, 0), moment_of(rows("plain", 23, 16, 1))),
        "not reached",
    ],
    ids=["as many rows as features", "lookups", "transposed uses too", "not known"],
)
def test_other_weights_are_not_parted_where_samples_are_enough(moment: Moment | str, tmp_path: Path) -> None:
    assert folds_of(ENOUGH_SAMPLES, tmp_path, moments={WEIGHT: moment}) == ()


def test_of_weights_short_of_rows_the_smallest_are_taken_as_far_as_there_is_time() -> None:
    moment = Moment(np.eye(4096)[None], np.zeros((1, 4096)), 10, 10)
    weights = [linear(np.zeros((4096, side))) for side in (512, 2048, 256, 2047, 2049)]
    groups = [group for model in weights for group in group_by_weight(sites_of(load_model(model).skeleton))]
    named = [replace(group, weight=replace(group.weight, name=str(number))) for number, group in enumerate(groups)]
    taken = weights_short_of_rows(named, {group.weight: moment for group in named})
    assert [group.weight.name for group in taken] == ["0", "2", "3"]
    assert weights_short_of_rows(named[4:], {named[4].weight: moment}) == []
    assert weights_short_of_rows(named, {}) == []


def test_much_work_is_tried_on_fewer_samples_and_more_on_none() -> None:
    inputs = (InputSpec("x", "float32", ("n", 24)),)
    feeds = load_feeds([{"x": rows("plain", 8, 24, 0)}], inputs)
    (site,) = SITES
    in_a_try = 2 * 2 * PARTS * GROUPS[0].shape.parameters  # ranks, and kinds of factors
    for room, expected in ((0.9, 0), (1.1, 1), (3.9, 3), (400.0, MOST_TRIED)):
        applied = 8 * MOST_MACS / in_a_try / room
        assert samples_to_try(GROUPS, {site.name: round(applied)}, feeds) == expected
    assert samples_to_try(GROUPS, {}, feeds) == MOST_TRIED


def test_a_model_that_runs_only_on_whole_feeds_has_no_folds(tmp_path: Path) -> None:
    def fails(model: object) -> None:
        raise ModelError("a batch of 8 or nothing")

    inputs = (InputSpec("x", "float32", ("n", 24)),)
    feeds = load_feeds([{"x": rows("plain", 8, 24, 0)}], inputs)
    found = fold_feeds(
        MODEL,
        GROUPS,
        fails,  # type: ignore[arg-type]
        inputs,
        feeds,
        seed=0,
        directory=tmp_path,
        progress=SILENT,
        tried=1,
    )
    assert found == ()


def test_what_one_part_does_not_tell_the_others_do_not_tell_together() -> None:
    known = moment_of(rows("plain", 4, 24, 0))
    parts = [Fold((), {WEIGHT: moment}) for moment in (known, "not reached", known)]
    without_it = OtherMoments(parts, 1)
    assert list(without_it) == [WEIGHT]
    with_it = OtherMoments(parts, 0)
    assert list(with_it) == []
    with pytest.raises(KeyError):
        with_it[WEIGHT]


def test_rows_of_transposed_uses_are_merged_too() -> None:
    tied = WeightRef((), "tied", "initializer", "float32", (24, 16))
    first, second = (moment_of(rows("plain", 4, 16, seed)) for seed in (1, 2))
    shown = [moment_of(rows("plain", 4, 24, 0), mirrored) for mirrored in (first, second, first)]
    parts = [Fold((), {tied: moment, WEIGHT: first}) for moment in shown]
    mirrored = MirroredMoments(OtherMoments(parts, 2))
    expected = (first.second_moment + second.second_moment) / 2
    np.testing.assert_allclose(mirrored[tied].second_moment, expected)
    assert list(mirrored) == [tied]
    assert len(mirrored) == 1
    assert WEIGHT not in mirrored
