"""Forms through the whole pipeline: planned, written, measured, reported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import helper

import lowrank_onnx
from lowrank_onnx import CompressionResult, Config, FixedRank, KeepParams, judging
from lowrank_onnx.types import LatencyComparison, Timing
from tests.passes.models import make_model, value

WIDTH = 64


def decaying(seed: int, rows: int = WIDTH, columns: int = WIDTH) -> np.ndarray:
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.standard_normal((side, WIDTH)))[0] for side in (rows, columns))
    return np.asarray((u * 0.93 ** np.arange(WIDTH)) @ v.T, np.float32)


def attention_inputs() -> onnx.ModelProto:
    """Three products of one input, with weights whose columns span the same, and a Gemm with a bias on their sum."""
    basis = decaying(0)
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"h{i}"], name=f"fc{i}") for i in range(3)]
    nodes += [
        helper.make_node("Sum", ["h0", "h1", "h2"], ["h"]),
        helper.make_node("Gemm", ["h", "last", "bias"], ["y"], name="last", transB=1),
    ]
    weights = {f"w{i}": basis @ np.linalg.qr(decaying(i + 1))[0] for i in range(3)}
    weights |= {"last": decaying(9), "bias": np.linspace(-1, 1, WIDTH, dtype=np.float32)}
    return make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)


def feeds() -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((128, WIDTH)).astype(np.float32)} for _ in range(4)]


def compress(*forms: str, share: float = 0.5) -> CompressionResult:
    config = Config(budget=KeepParams(share), objective="size", rank_multiple=4, forms=forms or Config().forms)
    result = lowrank_onnx.compress(attention_inputs(), config, feeds=feeds())
    assert result.status == "written", result.message
    return result


def error(result: CompressionResult) -> float:
    assert result.verdict is not None
    return result.verdict.relative_error


def test_more_forms_give_less_error_at_the_same_size() -> None:
    pair, pivoted, every = compress("pair"), compress("pair", "pivoted"), compress()
    assert {site.form for site in pair.sites} <= {"pair", "dense"}
    assert "pivoted" in {site.form for site in pivoted.sites}
    assert {site.form for site in every.sites[:3]} == {"shared"}
    assert error(every) < error(pivoted) < error(pair)
    for result in (pair, pivoted, every):
        assert result.after is not None
        assert result.after.site_parameters <= 0.5 * result.before.site_parameters
        assert result.after.site_parameters == sum(site.parameters_after for site in result.sites)
        assert result.model is not None
        stored = sum(int(np.prod(t.dims)) for t in result.model.graph.initializer)
        assert stored == result.after.site_parameters + WIDTH  # the bias, in one piece or in several


def with_dead_outputs() -> onnx.ModelProto:
    """A convolution whose first and last outputs hardly move beside their bias, as ReLU kills some while training."""
    kernel = decaying(0, WIDTH, WIDTH * 9).reshape(WIDTH, WIDTH, 3, 3)
    kernel[[0, 1, WIDTH - 2, WIDTH - 1]] *= 1e-12
    nodes = [
        helper.make_node("Conv", ["x", "w", "bias"], ["h"], name="conv"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    weights = {"w": kernel, "bias": np.full(WIDTH, 1e-3, np.float32)}
    return make_model(nodes, [value("x", ["n", WIDTH, 5, 5])], [value("y", ["n", WIDTH, 3, 3])], weights)


def test_outputs_that_are_dead_are_no_pivots_beside_their_bias() -> None:
    generator = np.random.default_rng(0)
    images = [{"x": generator.standard_normal((16, WIDTH, 5, 5)).astype(np.float32)} for _ in range(4)]

    def compressed(form: str) -> CompressionResult:
        budget = FixedRank(24) if form == "conv_channel" else KeepParams(0.41)
        config = Config(budget=budget, objective="size", forms=(form,), refine=False)
        return lowrank_onnx.compress(with_dead_outputs(), config, feeds=images)

    pair, pivoted = compressed("conv_channel"), compressed("pivoted")
    assert [site.rank for site in (*pair.sites, *pivoted.sites)] == [24, 24]
    (site,) = pivoted.sites
    assert site.form == "pivoted"
    assert error(pivoted) < 1.001 * error(pair)


def test_a_shared_first_factor_is_one_tensor_and_one_node() -> None:
    model = compress("shared", "pivoted").model
    assert model is not None
    assert [t.name for t in model.graph.initializer if t.name.endswith(".left") and t.name != "last.left"] == [
        "w0.left"
    ]
    first = next(node for node in model.graph.node if node.name == "fc0.left")
    readers = [node for node in model.graph.node if first.output[0] in node.input]
    assert [node.name for node in readers] == ["fc0", "fc1", "fc2"]


def test_a_rank_by_name_is_the_plain_form_unless_told_otherwise() -> None:
    for forms, expected in (((), "pair"), (("pivoted",), "pivoted")):
        config = Config(budget=FixedRank(8), objective="size", forms=forms or Config().forms)
        result = lowrank_onnx.compress(attention_inputs(), config, feeds=feeds())
        assert {(site.form, site.rank) for site in result.sites} == {(expected, 8)}


def judged_as(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Whole models are found so much faster; weights are really timed."""
    timing = Timing(1.0, 0.1, 10)
    found = LatencyComparison(timing, timing, speedup, speedup * 0.98, speedup * 1.02, 0.95, 12)
    monkeypatch.setattr(judging, "measure_latency", lambda *args, **kwargs: found)


def test_a_latency_plan_times_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    judged_as(monkeypatch, 1.5)
    config = Config(budget=KeepParams(0.5), rank_multiple=8)
    result = lowrank_onnx.compress(attention_inputs(), config, feeds=feeds())
    assert result.status == "written"
    assert "time weights" in result.seconds
    assert result.after is not None
    assert result.after.site_parameters <= 0.5 * result.before.site_parameters
