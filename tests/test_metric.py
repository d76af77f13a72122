from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from lowrank_onnx.errors import UsageError
from lowrank_onnx.metric import Metric, agreement_bound, load_metric

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
    assert metric.measure(lambda feed: {"y": np.array(0.5)}) == 0.5
    assert metric.higher_is_better
    assert metric.drop(0.9, 0.8) == pytest.approx(0.1)


def test_a_metric_may_be_better_when_lower(file: Path) -> None:
    metric = load_metric(f"{file}:loss")
    assert not metric.higher_is_better
    assert metric.drop(0.2, 0.3) == pytest.approx(0.1)


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


@pytest.mark.parametrize("value", [math.nan, math.inf, "good", None])
def test_a_metric_that_returns_no_number(value: object) -> None:
    with pytest.raises(UsageError, match="expected a finite number"):
        Metric("m", lambda predict: value).measure(lambda feed: {})


def test_a_metric_that_fails_says_how() -> None:
    def broken(predict: object) -> float:
        raise KeyError("label")

    with pytest.raises(UsageError, match="metric m failed: KeyError: 'label'"):
        Metric("m", broken).measure(lambda feed: {})


@pytest.mark.parametrize(("agreeing", "samples"), [(0, 10), (9, 10), (10, 10), (1990, 2000), (2000, 2000)])
def test_the_bound_is_the_share_at_which_so_many_would_be_lucky(agreeing: int, samples: int) -> None:
    bound = agreement_bound(agreeing, samples)
    assert 0.0 <= bound <= agreeing / samples
    if agreeing:
        assert binom.sf(agreeing - 1, samples, bound) == pytest.approx(0.05, rel=1e-6)


def test_the_bound_refuses_what_is_no_draw() -> None:
    with pytest.raises(ValueError, match="3 of 2 samples"):
        agreement_bound(3, 2)
