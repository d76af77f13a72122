from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import lowrank_onnx
from lowrank_onnx import Config, KeepParams, attempt, held_out_judge
from lowrank_onnx.attempt import TRUST_IN_FEW
from lowrank_onnx.candidates import PlannedWeight, dense_candidate, low_rank_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.folds import OtherMoments, fold_feeds
from lowrank_onnx.forms import MATRIX, PAIR, PIVOTED
from lowrank_onnx.held_out import measure_held_out
from lowrank_onnx.held_out_judge import HeldOutPlanError
from lowrank_onnx.model_io import load_model
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.moments.shrinkage import shrunk_second_moment
from lowrank_onnx.observed import observe
from lowrank_onnx.progress import SILENT
from lowrank_onnx.types import Spectrum
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import sites_of
from tests.test_calibration import linear, rows
from tests.test_held_out import OPTIONS, WEIGHT, optimal

MODEL = load_model(linear(WEIGHT))
SITES = sites_of(MODEL.skeleton)
GROUPS = group_by_weight(SITES)
PLANNED = PlannedWeight("fc", GROUPS[0].shape, (PAIR, PIVOTED), positions=1, damage=lambda tail: tail)
CURVES = {MATRIX: Spectrum(0.9 ** np.arange(16.0)[None], 6.0)}


@pytest.mark.parametrize("form", [PAIR, PIVOTED])
def test_a_plan_is_judged_by_samples_that_its_factors_were_not_made_of(form: object, tmp_path: Path) -> None:
    observed = observe(MODEL, SITES, [{"x": rows("plain", 8, 48, 0)}], provider="cpu", seed=0)
    run, inputs, feeds = observed.run, observed.session.inputs, observed.feeds
    folds = fold_feeds(MODEL, GROUPS, run, inputs, feeds, seed=0, directory=tmp_path, progress=SILENT, tried=4)
    shares = {GROUPS[0].weight: Validated(0.2, ())}
    ranks = [{MATRIX: 16}]
    held_out = measure_held_out(MODEL, GROUPS, ranks, observed, folds, shares, OPTIONS, "fast", tmp_path, SILENT)
    error_of = HeldOutPlanError(MODEL.skeleton, GROUPS, observed, held_out, tmp_path)
    assert error_of.affordable
    assert error_of((Choice(dense_candidate(PLANNED), ""),)) == 0.0
    found = error_of((Choice(low_rank_candidate(PLANNED, form, CURVES, 12), ""),))  # type: ignore[arg-type]
    W, logs = WEIGHT.astype(np.float64), []
    for number, fold in enumerate(folds):
        (moment,) = OtherMoments(folds, number).values()
        lost = W - optimal(W, shrunk_second_moment(moment, 0.2)[0], 12)
        for feed in fold.tried:
            own = feed["x"].astype(np.float64)
            logs.append(math.log(np.linalg.norm(own @ lost) / np.linalg.norm(own @ W)))
    assert found == pytest.approx(math.exp(np.mean(logs)), rel=1e-3)


def test_plans_of_few_samples_are_tried_unless_their_weights_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(budget=KeepParams(0.6), objective="size")
    model, feeds = linear(np.random.default_rng(1).standard_normal((64, 64))), [{"x": rows("plain", 8, 64, 0)}]
    tried = lowrank_onnx.compress(model, config, feeds=feeds).trials
    assert [trial.trust for trial in tried if not trial.plain] == [1.0, 0.5, 0.25, 0.0]
    assert all(trial.error is not None and 0.0 < trial.error < 1.0 for trial in tried)
    monkeypatch.setattr(held_out_judge, "MOST_IN_MEMORY", 64 * 64 * 4 - 1)
    blind = lowrank_onnx.compress(model, config, feeds=feeds).trials
    assert [(trial.trust, trial.error) for trial in blind] == [(TRUST_IN_FEW, None)]
    assert attempt.MOST_IN_MEMORY > 64 * 64 * 4
