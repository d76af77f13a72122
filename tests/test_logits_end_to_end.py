"""Outputs that are named as logits, through all stages: what a softmax ignores decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import Config, Gates, KeepParams, MaxError, UsageError
from lowrank_onnx.evaluate import accumulate
from lowrank_onnx.results import CompressionResult
from tests.tiny_model import decaying

CLASSES = 32
LEVEL = 100.0
HALF = Config(budget=KeepParams(0.5), objective="size", rank_multiple=1)
LOGITS = Config(budget=KeepParams(0.5), objective="size", rank_multiple=1, logits=("y",))


def with_level() -> onnx.ModelProto:
    """y = relu(x @ telling) @ head + a level per row, which is large and hard to compress: mean(relu(x @ ignored))."""
    noise = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32) / 8.0
    weights = {
        "telling": decaying(64, 64, 0.9) / 8.0,
        "head": decaying(64, CLASSES, 0.9),
        "ignored": noise,
        "scale": np.array(LEVEL, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "telling"], ["t"], name="telling"),
        helper.make_node("Relu", ["t"], ["tr"]),
        helper.make_node("MatMul", ["tr", "head"], ["scores"], name="head"),
        helper.make_node("MatMul", ["x", "ignored"], ["i"], name="ignored"),
        helper.make_node("Relu", ["i"], ["ir"]),
        helper.make_node("ReduceMean", ["ir"], ["mean"], axes=[-1], keepdims=1),
        helper.make_node("Mul", ["mean", "scale"], ["level"]),
        helper.make_node("Add", ["scores", "level"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "with_level",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(count: int = 16) -> list[Mapping[str, Any]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((8, 64)).astype(np.float32)} for _ in range(count)]


def ranks(result: CompressionResult) -> dict[str, int]:
    return {site.name: site.rank or 64 for site in result.sites}


def compress(config: Config, **options: Any) -> CompressionResult:
    return lowrank_onnx.compress(with_level(), config, feeds=feeds(), **options)


def test_the_plan_spares_what_counts() -> None:
    blind, aware = compress(HALF), compress(LOGITS)
    assert ranks(blind)["ignored"] > ranks(blind)["telling"]
    assert ranks(aware)["ignored"] < ranks(blind)["ignored"]
    assert ranks(aware)["telling"] > ranks(blind)["telling"]
    importance = {site.name: site.importance for site in aware.sites}
    assert importance["ignored"] == pytest.approx(0.0, abs=1e-6)
    assert importance["telling"] is not None
    assert importance["telling"] > 1e-3
    # Both judged by what counts: the one that planned by it is better, and the other's own figures don't say so.
    as_logits = Config(logits=("y",))
    errors = [
        lowrank_onnx.validate(with_level(), result.model, as_logits, feeds=feeds(4)).relative_error
        for result in (blind, aware)
        if result.model is not None
    ]
    assert errors[1] < 0.5 * errors[0]
    assert blind.verdict is not None
    assert blind.verdict.relative_error < 0.5 * errors[0]


@pytest.mark.parametrize("one_session", [True, False])
def test_every_error_of_outputs_is_measured_so(monkeypatch: pytest.MonkeyPatch, one_session: bool) -> None:
    """Sensitivities, plans, searches, refinement and the verdict."""
    made: list[bool] = []
    real = accumulate.OutputAccumulator

    class Recorded(real):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, *, logits: bool) -> None:
            made.append(logits)
            super().__init__(name, logits=logits)

    monkeypatch.setattr(accumulate, "OutputAccumulator", Recorded)
    searched = Config(
        budget=MaxError(0.2), objective="size", rank_multiple=1, refine=True, logits=("*",), one_session=one_session
    )
    result = compress(searched)
    assert result.trials
    assert result.search
    assert result.refinement is not None
    assert len(made) > len(result.trials) + len(result.search)
    assert all(made)


def test_the_budget_holds_for_what_counts() -> None:
    result = compress(Config(budget=MaxError(0.2), objective="size", rank_multiple=1, logits=("y",)))
    assert result.verdict is not None
    (output,) = result.verdict.outputs
    assert output.logits
    assert output.error <= 0.2
    assert output.common_level is not None
    assert output.common_level > 0.9
    assert result.model is not None
    raw = lowrank_onnx.validate(with_level(), result.model, feeds=feeds(4)).outputs[0]
    assert not raw.logits
    assert raw.common_level == pytest.approx(output.common_level, rel=0.05)


def test_gates_judge_what_counts() -> None:
    result = compress(HALF)
    assert result.model is not None
    for logits, passes in (((), True), (("y",), False)):
        config = Config(gates=Gates(max_error=0.1), logits=logits)
        verdict = lowrank_onnx.validate(with_level(), result.model, config, feeds=feeds(4))
        assert verdict.passed is passes, verdict.failures


def test_a_name_without_an_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    onnx.save(with_level(), tmp_path / "m.onnx")
    config = Config(budget=KeepParams(0.5), objective="size", validate=False, logits=("scores",))

    def refuse(number: int) -> Any:
        raise AssertionError(f"feed {number} was read")

    message = "--logits scores: no output has that name: expected some of y"
    with pytest.raises(UsageError, match=message):
        lowrank_onnx.compress(tmp_path / "m.onnx", config, feeds=map(refuse, range(3)))
    with pytest.raises(UsageError, match=message):
        lowrank_onnx.compress(tmp_path / "m.onnx", config)
    with pytest.raises(UsageError, match=message):
        lowrank_onnx.validate(tmp_path / "m.onnx", tmp_path / "m.onnx", config, feeds=map(refuse, range(3)))


def test_what_only_a_run_shows_is_refused_before_anything_is_factorized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may say nothing of its outputs' shapes."""
    model = with_level()
    node = helper.make_node("ReduceSum", ["y", "axis"], ["sum"], keepdims=1)
    model.graph.node.append(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "axis"))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("factorized")

    monkeypatch.setattr("lowrank_onnx.pipeline.spool_factors", refuse)
    config = Config(budget=KeepParams(0.5), objective="size", logits=("sum",))
    with pytest.raises(UsageError, match="--logits: output 'sum': its last axis has 1 of them"):
        lowrank_onnx.compress(model, config, feeds=feeds())
