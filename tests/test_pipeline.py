"""The stages together, through the Python API, on a model small enough to be judged by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import (
    Alpha,
    Config,
    Energy,
    FactorizationError,
    FixedRank,
    Gates,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxError,
    UsageError,
    attempt,
    judging,
)
from lowrank_onnx.few_samples import NOTHING_LEFT
from lowrank_onnx.types import LatencyComparison, Timing
from tests.refine.builders import inputs, layers
from tests.tiny_model import classifier, decaying

RANK = Config(budget=FixedRank(32), objective="size", validate=False)


def feeds(count: int = 3) -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((8, 128)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def fixed_latency(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Replaces the stop watch, not the judge."""
    timing = Timing(1.0, 0.1, 10)

    def measure(*args: object, **kwargs: object) -> LatencyComparison:
        return LatencyComparison(timing, timing, speedup, speedup * 0.98, speedup * 1.02, 0.95, 12)

    for module in (judging, attempt):
        monkeypatch.setattr(module, "measure_latency", measure)


def test_a_path_a_proto_and_a_graph_give_the_same_model(path: Path) -> None:
    proto = onnx.load(path)
    sources = (path, str(path), proto, gs.import_onnx(onnx.load(path)))
    results = [lowrank_onnx.compress(source, RANK).model for source in sources]
    weights = [{t.name: numpy_helper.to_array(t) for t in result.graph.initializer} for result in results if result]
    assert len(weights) == 4
    for other in weights[1:]:
        assert sorted(other) == sorted(weights[0])
        assert all(np.array_equal(other[name], array) for name, array in weights[0].items())
    assert proto == onnx.load(path)


def test_the_result_counts_what_was_done(path: Path, tmp_path: Path) -> None:
    result = lowrank_onnx.compress(path, RANK, output=tmp_path / "small.onnx")
    assert result.status == "written"
    assert result.before.site_parameters == 128 * 256 + 256 * 10
    assert result.after is not None
    assert result.after.site_parameters == 32 * (128 + 256) + 256 * 10
    assert result.before.parameters - result.after.parameters == 128 * 256 - 32 * (128 + 256)
    assert result.after.file_bytes == (tmp_path / "small.onnx").stat().st_size
    small, left_dense = result.sites
    expected = np.linalg.svd(decaying(128, 256, 0.9), compute_uv=False)
    tail = np.linalg.norm(expected[32:]) / np.linalg.norm(expected)
    assert small.relative_error == pytest.approx(tail, rel=0.05)
    assert left_dense.rank is None
    assert left_dense.reason == "rank 32 would not make it smaller: factors of 256 x 10 save weights up to rank 9"


@pytest.mark.parametrize("budget", [KeepParams(0.5), KeepMacs(0.5)])
def test_shares_are_met(path: Path, budget: KeepParams | KeepMacs) -> None:
    config = Config(budget=budget, objective="size", validate=False)
    result = lowrank_onnx.compress(path, config, feeds=feeds())
    assert result.after is not None
    kept = result.after.site_parameters / result.before.site_parameters
    assert 0.35 < kept <= 0.5
    if isinstance(budget, KeepMacs):
        assert result.before.macs == 8 * result.before.site_parameters
        assert result.after.macs == 8 * result.after.site_parameters


def test_a_share_of_bytes_is_met_where_weights_have_several_types() -> None:
    weight = decaying(64, 64, 0.9)
    weights: dict[str, np.ndarray] = {"w0": weight, "w1": weight.astype(np.float16)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="single"),
        helper.make_node("Cast", ["h"], ["c"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["c", "w1"], ["y"], name="half"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = lowrank_onnx.compress(model, Config(budget=KeepBytes(0.6), objective="size", validate=False))
    after = {site.dtype: site.parameters_after for site in result.sites}
    assert 0.5 < (4 * after["float32"] + 2 * after["float16"]) / (6 * 64 * 64) <= 0.6
    assert after["float32"] < after["float16"]


@pytest.mark.parametrize("budget", [Energy(0.99), Alpha(0.25)])
def test_budgets_by_weight_need_no_feeds(path: Path, budget: Energy | Alpha) -> None:
    result = lowrank_onnx.compress(path, replace(RANK, budget=budget))
    assert result.status == "written"
    assert result.verdict is None
    assert result.message == "compressed in memory, not validated"


def test_max_error_is_met_by_search(path: Path) -> None:
    config = Config(budget=MaxError(0.02), objective="size")
    result = lowrank_onnx.compress(path, config, feeds=feeds())
    assert result.status == "written"
    assert result.verdict is not None
    assert result.verdict.relative_error <= 0.02
    assert any(step.accepted for step in result.search)
    assert any(not step.accepted for step in result.search)


def test_the_exact_rank_changes_no_output(path: Path) -> None:
    config = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd")
    result = lowrank_onnx.compress(path, config, feeds=feeds())
    assert [site.rank for site in result.sites] == [128, 10]
    assert result.verdict is not None
    assert result.verdict.relative_error < 1e-5


def test_a_result_that_is_not_faster_is_not_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_latency(monkeypatch, 0.9)
    config = Config(budget=FixedRank(32))
    result = lowrank_onnx.compress(path, config, feeds=feeds(), output=tmp_path / "small.onnx")
    assert result.status == "rejected"
    assert "0.9" in result.message
    assert result.output is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx"]
    for_size = replace(config, objective="size")
    assert lowrank_onnx.compress(path, for_size, feeds=feeds(), output=tmp_path / "small.onnx").status == "written"


def test_a_faster_result_is_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_latency(monkeypatch, 1.5)
    config = Config(budget=FixedRank(32))
    assert lowrank_onnx.compress(path, config, feeds=feeds(), output=tmp_path / "small.onnx").status == "written"


@pytest.mark.parametrize("gates", [Gates(max_error=1e-6), Gates(min_sqnr_db=200.0)])
def test_a_gate_that_breaks_leaves_the_old_file(path: Path, tmp_path: Path, gates: Gates) -> None:
    output = tmp_path / "small.onnx"
    output.write_bytes(b"old")
    config = Config(budget=FixedRank(8), objective="size", gates=gates)
    result = lowrank_onnx.compress(path, config, feeds=feeds(), output=output, force=True)
    assert result.status == "rejected"
    assert output.read_bytes() == b"old"


def test_a_weight_that_is_not_finite_is_an_error_that_names_it(tmp_path: Path) -> None:
    model = classifier()
    spoilt = numpy_helper.to_array(model.graph.initializer[0]).copy()
    spoilt[3, 4] = np.inf
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(spoilt, "w0"))
    with pytest.raises(FactorizationError, match="weight 'w0'"):
        lowrank_onnx.compress(model, RANK)


def test_a_second_run_compresses_again_or_says_that_nothing_is_left(path: Path, tmp_path: Path) -> None:
    first = lowrank_onnx.compress(path, RANK, output=tmp_path / "once.onnx")
    again = lowrank_onnx.compress(tmp_path / "once.onnx", RANK, output=tmp_path / "twice.onnx")
    assert first.status == "written"
    assert again.status == "unchanged"
    assert not (tmp_path / "twice.onnx").exists()
    assert again.message == "nothing left to compress: an earlier run has factorized what this budget would"
    smaller = replace(RANK, budget=FixedRank(8))
    assert lowrank_onnx.compress(tmp_path / "once.onnx", smaller, output=tmp_path / "twice.onnx").status == "written"


def test_synthetic_feeds_that_the_model_can_not_run_on_ask_for_real_ones() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["y"]),
    ]
    values: dict[str, np.ndarray] = {"w": decaying(32, 32, 0.9), "shape": np.array([7, 32], np.int64)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    config = Config(budget=FixedRank(4), objective="size")
    with pytest.raises(UsageError, match=r"doesn't run on .*synthetic.*--calib"):
        lowrank_onnx.compress(model, config)
    real: Sequence[Mapping[str, np.ndarray]] = [{"x": np.ones((7, 32), np.float32)}]
    assert lowrank_onnx.compress(model, config, feeds=real).status == "written"


def test_external_data_of_a_proto_needs_its_directory(path: Path, tmp_path: Path) -> None:
    (tmp_path / "ext").mkdir()
    onnx.save(onnx.load(path), tmp_path / "ext" / "m.onnx", save_as_external_data=True, location="m.bin")
    proto = onnx.load(tmp_path / "ext" / "m.onnx", load_external_data=False)
    result = lowrank_onnx.compress(proto, RANK, base_directory=tmp_path / "ext")
    inline = lowrank_onnx.compress(path, RANK)
    assert result.model is not None
    assert inline.model is not None
    arrays = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (result.model, inline.model)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[1])


def test_shared_weight_is_factorized_and_stored_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="two"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(decaying(64, 64, 0.9), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = lowrank_onnx.compress(model, replace(RANK, budget=FixedRank(8)))
    assert [site.rank for site in result.sites] == [8, 8]
    assert result.before.site_parameters == 64 * 64
    assert result.after is not None
    assert result.after.site_parameters == 8 * 128
    assert result.model is not None
    assert sorted(t.name for t in result.model.graph.initializer) == ["w.left", "w.right"]


def test_inspect_shows_spectra_and_what_it_could_not_run(path: Path) -> None:
    result = lowrank_onnx.inspect(path)
    first = result.sites[0]
    values = np.linalg.svd(decaying(128, 256, 0.9), compute_uv=False)
    energies = np.cumsum(values**2) / np.sum(values**2)
    assert first.break_even_rank == 85
    assert first.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-3)
    assert dict(first.energy_ranks)[0.9] == int(np.argmax(energies >= 0.9)) + 1
    assert first.macs == first.parameters


def test_validate_reports_speed_without_judging_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_latency(monkeypatch, 0.5)
    verdict = lowrank_onnx.validate(path, path, feeds=feeds())
    assert verdict.passed
    assert verdict.relative_error == 0.0
    assert verdict.latency is not None


def convolutional(channels: int = 16) -> onnx.ModelProto:
    """Two 3x3 convolutions with a Relu between, and a mean over the image."""
    weights = {
        name: np.random.default_rng(seed).standard_normal((channels, channels, 3, 3)).astype(np.float32) / 12.0
        for seed, name in enumerate(("w0", "w1"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["h"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], name="mean"),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("forms", "rank_multiple"),
    [
        (("conv_spatial",), None),
        (("conv_tucker",), None),
        (("conv_input", "conv_tucker"), None),
        # At multiples of 16 the pair, which comes first, has no rank that saves anything here.
        (("conv_channel", "conv_spatial"), 16),
    ],
)
def test_chains_are_measured_and_planned_without_a_pair(forms: tuple[str, ...], rank_multiple: int | None) -> None:
    images = np.random.default_rng(0).standard_normal((8, 16, 8, 8)).astype(np.float32)
    config = Config(
        budget=KeepMacs(0.8),
        forms=forms,
        rank_multiple=rank_multiple,
        objective="size",
        validate=False,
        op_types=("Conv",),
    )
    result = lowrank_onnx.compress(convolutional(), config, feeds=[{"x": images[i : i + 2]} for i in range(0, 8, 2)])
    assert result.after is not None
    assert result.before.macs is not None
    assert result.after.macs is not None
    assert result.after.macs <= 0.8 * result.before.macs
    written = [site for site in result.sites if site.rank is not None]
    assert {site.form for site in written} <= set(forms) - {"conv_channel"}
    for site in written:
        assert site.importance is not None
        assert (site.input_error is None) == (NOTHING_LEFT in site.note)  # two of its samples say little of a kernel
        if site.input_error is not None:
            assert 0.0 < site.input_error < 1.0
            assert site.solver.startswith("als(1 sweep), weighted")
    assert any(site.input_error is not None for site in written)


def test_factors_are_refined_with_real_feeds_and_only_then() -> None:
    model, feeds = layers(3), inputs(16)
    config = Config(budget=FixedRank(4), objective="size")
    real = lowrank_onnx.compress(model, config, feeds=feeds)
    assert real.refinement is not None
    assert (real.refinement.feeds, real.refinement.held_out) == (12, 4)
    assert [(w.weight, w.reason) for w in real.refinement.weights if not w.refined] == [
        ("w0", "its inputs are the original's")
    ]
    assert real.refinement.error_before is not None
    assert real.refinement.error_after is not None
    assert real.refinement.error_after < real.refinement.error_before
    parts = ("run the original", "run the compressed model", "equations", "solve", "judge")
    assert {f"refine: {part}" for part in parts} <= real.seconds.keys()
    assert next(s for s in real.sites if s.weight == "w1").solver.endswith(", refined")
    assert lowrank_onnx.compress(model, config).refinement is None
    assert lowrank_onnx.compress(model, replace(config, refine=False), feeds=feeds).refinement is None


def test_a_layer_whose_inputs_are_all_zero_on_the_feeds_is_no_obstacle(tmp_path: Path) -> None:
    model = classifier()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    dead = -np.abs(numpy_helper.to_array(weights["w0"]))
    weights["w0"].CopyFrom(numpy_helper.from_array(dead.astype(np.float32), "w0"))
    feeds = [{"x": np.abs(np.random.default_rng(i).standard_normal((4, 128))).astype(np.float32)} for i in range(8)]
    result = lowrank_onnx.compress(model, Config(budget=KeepParams(0.5), objective="size"), feeds=feeds)
    assert result.status == "written", result.message
    assert result.verdict is not None
    assert result.verdict.relative_error < 1e-6
