from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_onnx.evaluate import open_session
from lowrank_onnx.metric import load_metric

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize(("model", "accuracy"), [("fashion_vgg", 0.9460), ("fashion_vit", 0.8945)])
def test_the_example_metric_counts_the_accuracy_of_the_shipped_models(model: str, accuracy: float) -> None:
    score = load_metric(f"{MODELS}/fashion_metric.py:correct").measure(open_session(MODELS / f"{model}.onnx").run)
    assert score.value == pytest.approx(accuracy)
    assert score.samples is not None
    assert len(score.samples) == 2000
