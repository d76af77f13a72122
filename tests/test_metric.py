from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.errors import UsageError
from lowrank_onnx.metric import Metric, load_metric

SOURCE = """
def accuracy(predict):
    return float(predict({"x": 1})["y"])

def loss(predict):
    return 0.25
loss.higher_is_better = False

not_callable = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.py"
    path.write_text(SOURCE)
    return path


def test_a_metric_gets_a_way_to_run_the_model(file: Path) -> None:
    metric = load_metric(f"{file}:accuracy")
    score = metric.measure(lambda feed: {"y": np.array(0.5)})
    assert (score.value, score.samples) == (0.5, None)
    assert metric.higher_is_better
    assert metric.name == f"{file}:accuracy"


def test_a_metric_may_be_better_when_lower(file: Path) -> None:
    metric = load_metric(f"{file}:loss")
    assert not metric.higher_is_better
    assert Metric.of(metric.function) == Metric("loss", metric.function, higher_is_better=False)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("metrics.py", "expected FILE.py:FUNCTION"),
        ("metrics.txt:accuracy", "expected FILE.py:FUNCTION"),
        ("metrics.py:not a name", "expected FILE.py:FUNCTION"),
        ("missing.py:accuracy", "no such file missing.py"),
        ("metrics.py:missing", "has no function missing"),
        ("metrics.py:not_callable", "has no function not_callable"),
    ],
)
def test_a_place_that_holds_no_metric(file: Path, monkeypatch: pytest.MonkeyPatch, place: str, line: str) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(UsageError, match=line):
        load_metric(place)


def test_a_file_that_does_not_load(file: Path) -> None:
    file.write_text("1 / 0")
    with pytest.raises(UsageError, match="failed to load: ZeroDivisionError"):
        load_metric(f"{file}:accuracy")


def test_a_file_that_ends_the_program_is_an_error_like_any_other(file: Path) -> None:
    file.write_text("raise SystemExit(0)")
    with pytest.raises(UsageError, match="failed to load: SystemExit: 0"):
        load_metric(f"{file}:accuracy")


def test_a_file_may_define_dataclasses(file: Path) -> None:
    """Which look their module up by its name."""
    lines = "from __future__ import annotations", "from dataclasses import dataclass", "@dataclass", "class accuracy:"
    file.write_text("\n".join((*lines, "    predict: object", "    def __float__(self): return 1.0")))
    assert callable(load_metric(f"{file}:accuracy").function)


@pytest.mark.parametrize("value", [[True, False, True, True], np.array([1, 0, 1, 1]), np.array([1.0, 0.0, 1.0, 1.0])])
def test_a_metric_may_tell_samples_apart(value: object) -> None:
    score = Metric("m", lambda predict: value).measure(lambda feed: {})
    assert score.value == 0.75
    assert score.samples is not None
    assert score.samples.tolist() == [True, False, True, True]


@pytest.mark.parametrize("value", [3, np.float32(3.0), np.array(3), True + 2])
def test_numbers_of_every_kind(value: object) -> None:
    score = Metric("m", lambda predict: value).measure(lambda feed: {})
    assert (score.value, score.samples) == (3.0, None)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, "good", None, np.array(math.nan), [], [0.5, 1.0], [[1, 0]], [math.nan], {"a": 1}]
)
def test_a_metric_that_returns_no_number(value: object) -> None:
    with pytest.raises(UsageError, match="expected a finite number"):
        Metric("m", lambda predict: value).measure(lambda feed: {})


def test_a_metric_that_fails_says_how() -> None:
    def broken(predict: object) -> float:
        raise KeyError("label")

    with pytest.raises(UsageError, match="metric m failed: KeyError: 'label'"):
        Metric("m", broken).measure(lambda feed: {})


def test_only_the_first_line_of_a_failure_is_told() -> None:
    def broken(predict: object) -> float:
        raise ValueError("first\nsecond")

    with pytest.raises(UsageError, match=r"^metric m failed: ValueError: first$"):
        Metric("m", broken).measure(lambda feed: {})
