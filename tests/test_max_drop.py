"""``--max-drop`` through the Python API: a search by the user's own metric, and what the result proves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lowrank_onnx
from lowrank_onnx import Config, FixedRank, Gates, MaxDrop, Metric, UsageError
from lowrank_onnx.evaluate.confidence import drop_at_most
from lowrank_onnx.evaluate.session import open_session
from lowrank_onnx.metric import Predict
from tests.tiny_model import classifier

IMAGES = np.random.default_rng(3).standard_normal((600, 128)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def labels(path: Path) -> Any:
    """What the original says, for nine samples of ten."""
    classes = open_session(path).run({"x": IMAGES})["y"].argmax(axis=1)
    classes[::10] = (classes[::10] + 1) % 10
    return classes


def feeds(count: int = 8) -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((8, 128)).astype(np.float32)} for _ in range(count)]


def searching(limit: float, metric: Metric) -> Config:
    return Config(budget=MaxDrop(limit), objective="size", metric=metric)


def test_a_drop_is_kept_on_what_the_samples_prove(path: Path, labels: Any) -> None:
    def correct(predict: Predict) -> Any:
        return predict({"x": IMAGES})["y"].argmax(axis=1) == labels

    result = lowrank_onnx.compress(path, searching(0.03, Metric.of(correct)), feeds=feeds())
    assert result.status == "written"
    assert result.verdict is not None
    metric = result.verdict.metric
    assert metric is not None
    assert metric.lost is not None
    assert metric.gained is not None
    assert (metric.name, metric.original, metric.samples) == ("correct", 0.9, 600)
    assert metric.drop_bound == drop_at_most(metric.lost, metric.gained, 600, 1.0 - 0.05 / 6)
    assert metric.drop < metric.drop_bound <= 0.03
    accepted = [step for step in result.search if step.accepted]
    assert min(accepted, key=lambda step: step.keep).judged_drop == metric.drop_bound
    assert any(not step.accepted for step in result.search)
    assert all(step.accepted == ((step.judged_drop or 0.0) <= 0.03) for step in result.search)


def test_a_drop_of_a_number_is_taken_as_it_is(path: Path, labels: Any) -> None:
    def loss(predict: Predict) -> float:
        return float((predict({"x": IMAGES})["y"].argmax(axis=1) != labels).mean())

    loss.higher_is_better = False  # type: ignore[attr-defined]
    result = lowrank_onnx.compress(path, searching(0.02, Metric.of(loss)), feeds=feeds())
    assert result.verdict is not None
    metric = result.verdict.metric
    assert metric is not None
    assert metric.drop_bound is None
    assert metric.original == pytest.approx(0.1)
    assert metric.drop == pytest.approx(metric.candidate - metric.original)
    assert metric.drop <= 0.02
    assert {step.drop == step.judged_drop for step in result.search} == {True}


def test_a_drop_out_of_reach_tells_the_best_that_can_be_had(path: Path) -> None:
    original = open_session(path).run({"x": IMAGES})["y"]

    def exactness(predict: Predict) -> float:
        return -float(np.abs(predict({"x": IMAGES})["y"] - original).max())

    result = lowrank_onnx.compress(path, searching(0.0, Metric.of(exactness)), feeds=feeds())
    assert result.status == "unchanged"
    best = min(step.drop for step in result.search if step.drop is not None)
    assert best > 0.0
    assert result.message.startswith("out of reach: the model tried that comes closest keeps the share 0.")
    assert result.message.endswith(f" and has a drop of {best:.3g}, above --max-drop 0")


def test_too_few_samples_are_refused_before_anything_is_factorized(path: Path) -> None:
    metric = Metric("few", lambda predict: [True] * 20)
    with pytest.raises(
        UsageError, match=r"--max-drop 0.01: 20 samples of few can prove a drop of at most 0\.\d+; give"
    ):
        lowrank_onnx.compress(path, searching(0.01, metric), feeds=feeds())


def test_a_metric_that_fails_is_one_line_with_its_name(path: Path) -> None:
    metric = Metric("metrics.py:broken", lambda predict: predict({"wrong": IMAGES}))
    with pytest.raises(UsageError, match=r"^metric metrics.py:broken failed: ModelError: onnxruntime can't run the mo"):
        lowrank_onnx.compress(path, searching(0.01, metric), feeds=feeds())


def test_beside_another_budget_a_drop_is_a_gate(path: Path, labels: Any) -> None:
    metric = Metric("accuracy", lambda predict: float((predict({"x": IMAGES})["y"].argmax(axis=1) == labels).mean()))
    config = Config(budget=FixedRank(4), objective="size", metric=metric, gates=Gates(max_drop=0.001))
    result = lowrank_onnx.compress(path, config, feeds=feeds())
    assert result.status == "rejected"
    assert result.message.startswith("not written: metric accuracy: 0.9 -> 0.")
    assert result.message.endswith("above --max-drop 0.001")
    assert result.search == ()


def test_two_models_are_compared_by_a_metric(path: Path, labels: Any) -> None:
    metric = Metric("correct", lambda predict: predict({"x": IMAGES})["y"].argmax(axis=1) == labels)
    config = Config(metric=metric, gates=Gates(max_drop=0.01))
    verdict = lowrank_onnx.validate(path, path, config, feeds=feeds())
    assert verdict.passed
    assert verdict.metric is not None
    assert (verdict.metric.drop, verdict.metric.lost, verdict.metric.gained) == (0.0, 0, 0)
    assert verdict.metric.drop_bound == drop_at_most(0, 0, 600)
    assert [output.top1_rows for output in verdict.outputs] == [64]
