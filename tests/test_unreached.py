"""Every kind of budget that can't be met is answered with the best that can be had."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

import lowrank_onnx
from lowrank_onnx import (
    Alpha,
    Config,
    Energy,
    FixedRank,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Metric,
    Speedup,
    UsageError,
)
from lowrank_onnx.candidates import PlannedWeight, dense_candidate
from lowrank_onnx.choose import NOT_FASTER, Choice
from lowrank_onnx.config import Budget
from lowrank_onnx.forms import PAIR
from lowrank_onnx.results import SearchStep
from lowrank_onnx.types import MatrixShape
from lowrank_onnx.unreached import unchanged_message
from tests.tiny_model import classifier

WEIGHT = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), None)
DENSE = Choice(dense_candidate(WEIGHT))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("budget", "possible", "best"),
    [
        (FixedRank(120), FixedRank(85), "; the largest --rank that makes one smaller is 85"),
        (Alpha(0.95), Alpha(0.9), "; the largest --alpha that makes one smaller is 0.9"),
        (Energy(1.0), Energy(0.9999), "; the largest --energy that makes one smaller is 0.9999"),
    ],
)
def test_a_budget_for_each_weight_names_the_nearest_that_does_something(
    path: Path, budget: Budget, possible: Budget, best: str
) -> None:
    config = Config(budget=budget, objective="size", validate=False, op_types=("MatMul", "Gemm"))
    result = lowrank_onnx.compress(path, config)
    assert result.status == "unchanged"
    assert result.message == f"nothing to gain: at this budget no weight gets smaller{best}"
    reached = Config(budget=possible, objective="size", validate=False)
    assert lowrank_onnx.compress(path, reached).status == "written"


@pytest.mark.parametrize("budget", [KeepParams(0.001), KeepBytes(0.001), KeepMacs(0.001)])
def test_a_share_out_of_reach_names_the_smallest_which_can_be_had(path: Path, budget: Budget) -> None:
    config = Config(budget=budget, objective="size", validate=False)
    with pytest.raises(
        UsageError, match=r"0.001: the smallest share that these weights can be brought to is 0\.\d{3}; "
    ):
        lowrank_onnx.compress(path, config)


def test_an_error_out_of_reach_names_the_model_that_comes_closest(path: Path) -> None:
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)}]
    result = lowrank_onnx.compress(path, Config(budget=MaxError(1e-9), objective="size"), feeds=feeds)
    best = min(result.search, key=lambda step: step.error)
    assert result.status == "unchanged"
    assert result.message == (
        f"out of reach: the model tried that comes closest keeps the share {best.keep:.3f} and has a relative error of "
        f"{best.error:.3g}, above --max-error 1e-09"
    )


def message(budget: Budget, *search: SearchStep, choice: Choice = DENSE, compressed_before: bool = False) -> str:
    config = Config(budget=budget, metric=Metric("m", lambda predict: 1.0))
    return unchanged_message(config, [WEIGHT], [{}], [choice], search, compressed_before=compressed_before)


def test_a_speed_and_a_drop_out_of_reach_name_the_best_model_tried() -> None:
    assert message(Speedup(2.0), SearchStep(0.5, 0.1, False, 1.2), SearchStep(0.3, 0.2, False, 1.5)) == (
        "out of reach: the fastest model tried is 1.5 times as fast (relative error of its outputs: 0.2), below "
        "--speedup 2"
    )
    steps = (
        SearchStep(0.5, 0.1, False, drop=0.03, judged_drop=0.05),
        SearchStep(0.9, 0.1, False, drop=0.01, judged_drop=0.02),
    )
    assert message(MaxDrop(0.005), *steps) == (
        "out of reach: the model tried that comes closest keeps the share 0.900 and has a drop of 0.01, 0.02 at most "
        "with 95 % confidence, above --max-drop 0.005"
    )


def test_a_model_without_a_finite_error_does_not_come_closest() -> None:
    steps = SearchStep(0.5, math.nan, False), SearchStep(0.9, 0.3, False)
    assert "keeps the share 0.900 and has a relative error of 0.3" in message(MaxError(0.1), *steps)


def test_other_reasons_come_first() -> None:
    slow = Choice(dense_candidate(WEIGHT), f"{NOT_FASTER} (1 ms)")
    assert message(Speedup(2.0), choice=slow) == "nothing to gain: no weight is measurably faster at any rank"
    assert message(MaxError(0.1), SearchStep(0.5, 0.3, False), compressed_before=True).startswith("nothing left")
    nothing = unchanged_message(Config(), [], [], [], (), compressed_before=True)
    assert nothing == "nothing to compress: the model has no weight that can be factorized"
