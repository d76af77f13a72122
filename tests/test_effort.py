from __future__ import annotations

from dataclasses import replace

from lowrank_onnx import Config, MaxDrop, MaxError, Metric
from lowrank_onnx.effort import EFFORTS
from lowrank_onnx.search import most_attempts
from lowrank_onnx.settle import models_searched


def test_more_effort_takes_more_time_everywhere() -> None:
    fast, default, full = EFFORTS["fast"], EFFORTS["default"], EFFORTS["full"]
    assert [level.sensitivity for level in (fast, default, full)] == ["off", "fast", "full"]
    for name in ("attempt_seconds", "timing_seconds", "curve_scale"):
        assert getattr(fast, name) < getattr(default, name) < getattr(full, name)
    assert fast.resolution > default.resolution > full.resolution


def test_what_is_given_wins_over_the_effort() -> None:
    assert Config().preset == EFFORTS["default"]
    assert Config(effort="full").preset.sensitivity == "full"
    explicit = Config(effort="fast", sensitivity="full").preset
    assert explicit.sensitivity == "full"
    assert explicit.timing_seconds == EFFORTS["fast"].timing_seconds


def test_a_finer_search_shares_its_confidence_among_more_models() -> None:
    config = Config(budget=MaxDrop(0.01), metric=Metric("m", lambda predict: 1.0))
    counts = [models_searched(replace(config, effort=effort)) for effort in EFFORTS]
    assert counts == [most_attempts(0.05), most_attempts(0.02), most_attempts(0.01)] == [5, 6, 7]
    assert models_searched(Config(budget=MaxError(0.1), effort="full")) == 7
