from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import Config, KeepParams, folds, learning
from lowrank_onnx import held_out as held_out_module
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.few_samples import NOTHING_LEFT
from lowrank_onnx.folds import Fold, OtherMoments, fold_feeds
from lowrank_onnx.forms import MATRIX
from lowrank_onnx.held_out import HeldOut, measure_held_out, typical
from lowrank_onnx.model_io import load_model
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.moments.shrinkage import shrunk_second_moment
from lowrank_onnx.observed import observe
from lowrank_onnx.progress import SILENT
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.types import Array, Spectrum
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import sites_of
from tests.test_calibration import linear, rows

OPTIONS = FactorizeOptions(method="svd", power_iterations=1, oversampling=0, seed=0, device="cpu")
WEIGHT = np.random.default_rng(1).standard_normal((48, 32)).astype(np.float32)


def measured(
    x: Array, share: float, directory: Path, weight: Array = WEIGHT
) -> tuple[HeldOut, Sensitivity | Unmeasured, tuple[Fold, ...]]:
    """What is learnt of a single weight with the identity in a share of its moments."""
    model = load_model(linear(weight))
    sites = sites_of(model.skeleton)
    groups = group_by_weight(sites)
    observed = observe(model, sites, [{"x": x}], provider="cpu", seed=0)
    run, inputs, feeds = observed.run, observed.session.inputs, observed.feeds
    parts = fold_feeds(model, groups, run, inputs, feeds, seed=0, directory=directory, progress=SILENT, tried=4)
    validated = {groups[0].weight: Validated(share, ())}
    ranks = [{MATRIX: 16}]
    held_out = measure_held_out(model, groups, ranks, observed, parts, validated, OPTIONS, "fast", directory, SILENT)
    return held_out, held_out.effects[groups[0].weight], parts


def optimal(weight: Array, C: Array, rank: int) -> Array:
    """The best approximation of a rank in the norm of a second moment: W on the leading directions of its outputs."""
    vectors = np.linalg.eigh(weight.T @ C @ weight)[1][:, ::-1][:, :rank]
    return np.asarray(weight @ vectors @ vectors.T)


def test_effects_are_those_of_factors_on_samples_that_they_were_not_made_of(tmp_path: Path) -> None:
    x = rows("plain", 8, 48, 0)
    held_out, effect, parts = measured(x, 0.2, tmp_path)
    assert isinstance(effect, Sensitivity)
    assert not held_out.unweighted
    W = WEIGHT.astype(np.float64)
    for rank, found in zip(effect.ranks, effect.output_errors, strict=True):
        logs = []
        for number, fold in enumerate(parts):
            (moment,) = OtherMoments(parts, number).values()
            lost = W - optimal(W, shrunk_second_moment(moment, 0.2)[0], rank)
            for feed in fold.tried:
                own = feed["x"].astype(np.float64)
                logs.append(2 * math.log(np.linalg.norm(own @ lost) / np.linalg.norm(own @ W)))
        assert found == pytest.approx(math.exp(np.mean(logs)), rel=1e-3)


def test_a_weight_whose_inputs_tell_nothing_is_better_off_without_them(tmp_path: Path) -> None:
    """A weight of low rank but for noise, and a few rows of even inputs, which hide most of it."""
    generator = np.random.default_rng(3)
    u, v = (np.linalg.qr(generator.standard_normal((side, 8)))[0] for side in (48, 32))
    weight = (u * 2.0 ** -np.arange(8.0)) @ v.T + 1e-4 * generator.standard_normal((48, 32))
    held_out, effect, _ = measured(generator.standard_normal((8, 48)).astype(np.float32), 0.0, tmp_path, weight)
    (ref,) = held_out.unweighted
    assert isinstance(effect, Sensitivity)
    _, values, _ = np.linalg.svd(weight.astype(np.float32))
    tails = [float(np.sum(values[rank:] ** 2) / np.sum(values**2)) for rank in effect.ranks]
    assert effect.tail_energies == pytest.approx(tails, rel=1e-2)
    plain, other = (held_out.factors(fold, ref) for fold in (0, 1))
    assert plain is other
    (tmp_path / "weighted").mkdir()
    weighted, _, _ = measured(rows("plain", 8, 48, 0), 0.2, tmp_path / "weighted")
    assert weighted.factors(0, ref) is not weighted.factors(1, ref)


def test_effects_that_a_cache_has_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = linear(np.random.default_rng(1).standard_normal((64, 64))), [{"x": rows("plain", 8, 64, 0)}]
    config = Config(budget=KeepParams(0.6), objective="size")
    first = lowrank_onnx.compress(model, config, feeds=feeds, cache=tmp_path)
    monkeypatch.setattr(held_out_module, "measure_sensitivity", None)
    again = lowrank_onnx.compress(model, config, feeds=feeds, cache=tmp_path)
    assert again.sites == first.sites
    assert again.trials == first.trials
    with pytest.raises(TypeError):
        lowrank_onnx.compress(model, config, feeds=[{"x": rows("plain", 9, 64, 0)}], cache=tmp_path)


def test_effects_count_as_those_of_the_tails_that_a_plan_goes_by(tmp_path: Path) -> None:
    held_out, effect, _ = measured(rows("plain", 8, 48, 0), 0.2, tmp_path)
    assert isinstance(effect, Sensitivity)
    groups = group_by_weight(sites_of(load_model(linear(WEIGHT)).skeleton))
    spectrum = Spectrum(0.5 ** np.arange(16.0)[None], 1.4)
    (found,) = held_out.sensitivities(groups, ({MATRIX: spectrum},)).values()
    assert isinstance(found, Sensitivity)
    assert found.output_errors == effect.output_errors
    expected = [1.0 - float(np.sum(0.25 ** np.arange(rank))) / 1.4 for rank in effect.ranks]
    assert found.tail_energies == pytest.approx(expected)
    assert held_out.sensitivities(groups, ({},)) == {}


def test_the_typical_error_is_not_that_of_one_hard_sample() -> None:
    assert typical([1.0, 100.0]) == pytest.approx(10.0)
    assert typical([0.0, 0.5, 1.0]) == pytest.approx(0.5)  # answers that are right or wrong
    assert typical([0.1, math.inf]) == math.inf
    assert typical([0.1, math.nan]) == math.inf


def one_token() -> onnx.ModelProto:
    """All tokens are multiplied, and one of them is read."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
            helper.make_node("Gather", ["h", "first"], ["y"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 25, 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array(0), "first")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def tokens(count: int, seed: int) -> Array:
    """Many rows of which one counts, and that one is like no other."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, 25, 48)) * 0.8 ** np.arange(48)
    values[:, 0] = 2.0 * generator.standard_normal((count, 48))
    return values.astype(np.float32)


def test_rows_enough_of_which_few_count_do_not_deceive_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the last layers of a ViT, of which the class token alone is read."""
    config = Config(budget=KeepParams(0.6), objective="size", forms=("pair",), refine=False)

    def predicted_and_true() -> tuple[float, float]:
        result = lowrank_onnx.compress(one_token(), config, feeds=[{"x": tokens(8, 0)}])
        (predicted,) = (site.predicted_error for site in result.sites)
        assert predicted is not None
        assert result.model is not None
        return predicted, lowrank_onnx.validate(one_token(), result.model, feeds=[{"x": tokens(500, 1)}]).relative_error

    predicted, true = predicted_and_true()
    assert predicted == pytest.approx(true, rel=0.25)
    monkeypatch.setattr(learning, "samples_to_try", lambda *_: 0)
    monkeypatch.setattr(folds, "ENOUGH_FOR_MOMENTS", 1)
    deceived, worse = predicted_and_true()
    assert deceived < 0.5 * worse
    assert true < worse


def test_a_weight_without_its_inputs_says_so() -> None:
    generator = np.random.default_rng(3)
    u, v = (np.linalg.qr(generator.standard_normal((side, 16)))[0] for side in (192, 64))
    model = linear((u * 1.5 ** -np.arange(16.0)) @ v.T + 1e-4 * generator.standard_normal((192, 64)))
    feeds = [{"x": generator.standard_normal((8, 192)).astype(np.float32)}]
    config = Config(budget=KeepParams(0.3), objective="size")
    (site,) = lowrank_onnx.compress(model, config, feeds=feeds).sites
    plain = lowrank_onnx.compress(model, replace(config, whiten=False), feeds=feeds).sites[0]
    assert NOTHING_LEFT in site.note
    assert site.input_error is None
    assert (site.rank, site.form, site.relative_error) == (plain.rank, plain.form, plain.relative_error)
