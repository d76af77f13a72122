from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import lowrank_onnx
from lowrank_onnx import few_samples, folds
from lowrank_onnx.cache import NO_CACHE, Cache, open_cache
from lowrank_onnx.calibration import weight_moments
from lowrank_onnx.candidates import tail_energy
from lowrank_onnx.config import Config, KeepParams
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.few_samples import NOTHING_LEFT, believed, honest_curves, validate_moments, without_moments
from lowrank_onnx.folds import ENOUGH_SAMPLES, Fold, fold_feeds
from lowrank_onnx.forms import MATRIX
from lowrank_onnx.model_io import load_model
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.observed import observe
from lowrank_onnx.progress import SILENT
from lowrank_onnx.types import Spectrum, Tails, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import sites_of
from tests.test_calibration import held_out_error, linear, rows
from tests.tiny_model import classifier

KINDS = ["plain", "duplicated features", "constant inputs", "dead inputs"]


MODEL = load_model(linear(np.random.default_rng(1).standard_normal((96, 64))))
SITES = sites_of(MODEL.skeleton)
GROUPS = group_by_weight(SITES)
WEIGHT = GROUPS[0].weight


def folded(samples: int, directory: Path) -> tuple[dict[WeightRef, Moment | str], Feeds, tuple[Fold, ...]]:
    """The moment of all samples, and the samples in parts."""
    observed = observe(MODEL, SITES, [{"x": rows("plain", samples, 96, 0)}], provider="cpu", seed=0)
    x = rows("plain", samples, 96, 0).astype(np.float64)
    moment = Moment((x.T @ x / samples)[None], x.mean(axis=0)[None], samples, samples)
    run, inputs, feeds = observed.run, observed.session.inputs, observed.feeds
    parts = fold_feeds(MODEL, GROUPS, run, inputs, feeds, seed=0, directory=directory, progress=SILENT, tried=4)
    return {WEIGHT: moment}, feeds, parts


def validated(samples: int, directory: Path, cache: Cache = NO_CACHE) -> dict[WeightRef, Validated]:
    return validate_moments(MODEL, GROUPS, *folded(samples, directory), seed=0, cache=cache)


def test_what_was_validated_is_kept_for_the_same_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path / "cache", list)
    found = validated(8, tmp_path, cache)
    with monkeypatch.context() as patched:
        patched.setattr(few_samples, "validate_shrinkage", None)
        (tmp_path / "again").mkdir()
        assert validated(8, tmp_path / "again", cache) == found
    (tmp_path / "other").mkdir()
    assert validated(9, tmp_path / "other", cache) != found


def test_few_samples_are_validated_and_enough_are_not(tmp_path: Path) -> None:
    (found,) = validated(8, tmp_path).values()
    assert 0.0 < found.share <= 1.0
    assert found.tails
    assert validated(ENOUGH_SAMPLES, tmp_path) == {}


def test_too_few_samples_to_part_are_taken_as_they_are(tmp_path: Path) -> None:
    assert validated(3, tmp_path) == {}


def test_factors_that_know_nothing_of_the_inputs_are_held_out_too(tmp_path: Path) -> None:
    moments, feeds, parts = folded(8, tmp_path)
    found = validate_moments(MODEL, GROUPS, moments, feeds, parts, seed=0)
    assert believed(moments, found) == moments
    assert without_moments(MODEL, GROUPS, parts, found, ()) == found
    changed = without_moments(MODEL, GROUPS, parts, found, {WEIGHT})
    assert changed[WEIGHT].share == 1.0
    assert believed(moments, changed) == {WEIGHT: NOTHING_LEFT}
    # What is lost of plain singular vectors, on samples that had no part in them.
    matrix = WeightReader(MODEL, [WEIGHT]).read(WEIGHT).astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    x = rows("plain", 8, 96, 0).astype(np.float64)
    for rank in (8, 32):
        kept = (left[:, :rank] * values[:rank]) @ right[:rank]
        lost = float(np.linalg.norm(x @ (matrix - kept)) ** 2 / np.linalg.norm(x @ matrix) ** 2)
        tail = float(np.sum(values[rank:] ** 2) / np.sum(values**2))
        assert changed[WEIGHT].honest(tail) == pytest.approx(lost, rel=0.05)


def test_honest_curves_have_the_tails_of_held_out_samples() -> None:
    found = Validated(0.5, ((0.01, 0.04), (0.1, 0.2)))
    values = 0.8 ** np.arange(16.0)[None]
    spectrum = Spectrum(values, float(np.sum(values**2)))
    tails = Tails((2, 4), (0.1, 0.01))
    curves = honest_curves({MATRIX: spectrum, "spatial": tails}, found)
    for rank in range(1, 16):
        expected = found.honest(tail_energy(spectrum, rank))
        assert tail_energy(curves[MATRIX], rank) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert [tail_energy(curves["spatial"], rank) for rank in (2, 4)] == pytest.approx([0.2, 0.04])
    assert honest_curves({MATRIX: spectrum}, None) == {MATRIX: spectrum}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_samples_are_never_worse_than_none(kind: str, seed: int) -> None:
    """For three times as many features; judged on rows that calibration did not see."""
    size = 24 * 8
    model = linear(np.random.default_rng(1).standard_normal((size, 64)))
    feeds: list[Mapping[str, np.ndarray]] = [{"x": rows(kind, 8, size, seed)}]
    test = rows(kind, 500, size, 100 + seed)
    weighted = held_out_error(model, Config(budget=KeepParams(0.6)), feeds, test)
    plain = held_out_error(model, Config(budget=KeepParams(0.6), whiten=False), feeds, test)
    assert np.isfinite(weighted)
    assert weighted <= plain * 1.02


def test_of_enough_samples_only_weights_with_fewer_rows_than_features_are_validated(tmp_path: Path) -> None:
    loaded = load_model(classifier(features=24, hidden=2 * ENOUGH_SAMPLES))
    sites = sites_of(loaded.skeleton)
    groups = group_by_weight(sites)
    observed = observe(loaded, sites, [{"x": rows("plain", ENOUGH_SAMPLES, 24, 0)}], provider="cpu", seed=0)
    run, inputs, feeds = observed.run, observed.session.inputs, observed.feeds
    moments = weight_moments(
        loaded.skeleton, groups, run, feeds, seed=0, directory=tmp_path, progress=SILENT, seen=observed.sites
    )
    parts = fold_feeds(
        loaded, groups, run, inputs, feeds, seed=0, directory=tmp_path, progress=SILENT, tried=4, moments=moments
    )
    found = validate_moments(loaded, groups, moments, feeds, parts, seed=0)
    assert [weight.name for weight in found] == ["w1"]
    assert {weight.name for weight in moments} == {"w0", "w1"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fewer_rows_than_features_are_pulled_as_far_as_other_rows_say(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some rows are many times as long as others, their number says too much."""
    size, draw = 4 * ENOUGH_SAMPLES, np.random.default_rng(seed)
    basis = draw.standard_normal((size, size)) * 0.99 ** np.arange(float(size))[:, None]

    def made(count: int) -> np.ndarray:
        lengths = np.exp(draw.standard_normal((count, 1)))
        return (draw.standard_normal((count, size)) @ basis * lengths).astype(np.float32)

    turned = np.linalg.qr(draw.standard_normal((64, 64)))[0]
    model = linear(draw.standard_normal((size, 64)) * 0.93 ** np.arange(64.0) @ turned)
    feeds: list[Mapping[str, np.ndarray]] = [{"x": made(ENOUGH_SAMPLES // 2)} for _ in range(4)]
    test, config = made(2000), Config(budget=KeepParams(0.5), objective="size", refine=False)
    pulled = held_out_error(model, config, feeds, test)
    monkeypatch.setattr(folds, "_is_short", lambda moment: False)
    assert pulled < 0.97 * held_out_error(model, config, feeds, test)


def test_eight_samples_of_a_wide_layer_end_to_end() -> None:
    weight = np.random.default_rng(1).standard_normal((1536, 48))
    config = Config(budget=KeepParams(0.5), objective="size")
    result = lowrank_onnx.compress(linear(weight), config, feeds=[{"x": rows("plain", 8, 1536, 0)}])
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.sites[0].rank is not None


def test_measured_effects_belong_to_the_errors_that_the_plan_adds_up() -> None:
    """A weight at the rank that was tried is predicted to do what it did, whatever its few samples promise."""
    weight = np.random.default_rng(1).standard_normal((192, 64))
    config = Config(budget=KeepParams(0.5), objective="size", forms=("pair",), rank_multiple=1)
    result = lowrank_onnx.compress(linear(weight), config, feeds=[{"x": rows("plain", 8, 192, 0)}])
    (site,) = result.sites
    assert site.rank is not None
    assert dict(site.probes)[site.rank] == pytest.approx(site.predicted_error, rel=1e-6)
