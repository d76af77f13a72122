"""The objective "latency" through the Python API, with curves and a stop watch that say what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import (
    Alpha,
    Config,
    FixedRank,
    Gates,
    KeepMacs,
    KeepParams,
    MaxError,
    Speedup,
    attempt,
    judging,
    time_weights,
)
from lowrank_onnx.forms import Form
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.table import Unmeasured
from lowrank_onnx.results import CompressionResult
from lowrank_onnx.types import LatencyComparison, Site, Timing
from tests.tiny_model import decaying

WIDTH = 64
QUICK = LatencyCurve(1.0, (8, 24), (0.25, 0.75), 0.05)
LITTLE = LatencyCurve(1.0, (8, 24), (0.85, 0.93), 0.05)
NEVER = LatencyCurve(1.0, (8, 24), (1.1, 1.2), 0.05)
NO_FASTER_RANK = "no rank is measurably faster here than dense (1 ms)"


def three_layers() -> onnx.ModelProto:
    names = ["first", "second", "third"]
    nodes = []
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", [("x", "r0", "r1")[i], f"w{i}"], [("a", "b", "y")[i]], name=name))
    # Something has to stand between them, or they become one.
    nodes.insert(1, helper.make_node("LeakyRelu", ["a"], ["r0"], alpha=0.5))
    nodes.insert(3, helper.make_node("LeakyRelu", ["b"], ["r1"], alpha=0.5))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(decaying(WIDTH, WIDTH, 0.8), f"w{i}") for i in range(3)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(count: int = 4) -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((8, WIDTH)).astype(np.float32)} for _ in range(count)]


class Bench:
    """Curves by site, and the speedups that are measured one after the other; the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *curves: LatencyCurve | Unmeasured) -> None:
        self.curves = dict(zip(["first", "second", "third"], curves, strict=True))
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self.races = 0
        self.speedup: Callable[[int], float] = lambda race: 1.5
        monkeypatch.setattr(time_weights, "LatencyTable", lambda directory, **options: self)
        for module in (judging, attempt):
            monkeypatch.setattr(module, "measure_latency", self.measure)
        monkeypatch.setattr(attempt, "median_run_ms", lambda session, feed: 5.0)

    def curve(
        self, skeleton: onnx.ModelProto, site: Site, form: Form, shape: tuple[int, ...]
    ) -> LatencyCurve | Unmeasured:
        self.seen.append((site.name, shape))
        return self.curves[site.name]

    def measure(self, *args: Any, **kwargs: Any) -> LatencyComparison:
        speedup = self.speedup(self.races)
        self.races += 1
        timing = Timing(1.0, 0.1, 10)
        return LatencyComparison(timing, timing, speedup, speedup * 0.98, speedup * 1.02, 0.95, 12)

    def compress(self, config: Config, output: Path | None = None) -> CompressionResult:
        config = replace(config, forms=("pair",))
        return lowrank_onnx.compress(three_layers(), config, feeds=feeds(), output=output)


def ranks(result: CompressionResult) -> list[int | None]:
    return [site.rank for site in result.sites]


def test_weights_that_no_rank_makes_faster_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, NEVER, QUICK)
    result = bench.compress(Config(budget=KeepMacs(0.6), rank_multiple=8))
    assert result.status == "written"
    assert ranks(result)[1] is None
    assert [site.reason for site in result.sites] == ["", NO_FASTER_RANK, ""]
    assert sorted(bench.seen) == [(name, (8, WIDTH)) for name in ("first", "second", "third")]
    assert "time weights" in result.seconds


@pytest.mark.parametrize("budget", [KeepMacs(0.4), KeepParams(0.4)])
def test_a_share_that_can_not_be_met_without_them_takes_slow_ranks(
    monkeypatch: pytest.MonkeyPatch, budget: KeepMacs | KeepParams
) -> None:
    result = Bench(monkeypatch, QUICK, NEVER, NEVER).compress(Config(budget=budget, rank_multiple=8))
    assert result.status == "written"
    assert result.after is not None
    assert result.after.site_parameters <= 0.4 * result.before.site_parameters
    assert None not in ranks(result)


def test_an_error_is_met_where_it_saves_most_time(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Bench(monkeypatch, QUICK, NEVER, LITTLE).compress(Config(budget=MaxError(0.3), rank_multiple=8))
    assert result.status == "written"
    assert result.verdict is not None
    assert result.verdict.relative_error <= 0.3
    assert result.sites[0].rank is not None
    assert result.sites[1].reason == NO_FASTER_RANK


def test_nothing_is_gained_where_no_rank_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Bench(monkeypatch, NEVER, NEVER, NEVER).compress(Config(rank_multiple=8))
    assert result.status == "unchanged"
    assert result.message == "nothing to gain: no weight is measurably faster at any rank"
    assert {site.reason for site in result.sites} == {NO_FASTER_RANK}


@pytest.mark.parametrize(
    "config",
    [
        Config(budget=KeepMacs(0.5), objective="size", rank_multiple=8),
        Config(budget=KeepMacs(0.5), validate=False, rank_multiple=8),
        Config(budget=FixedRank(8)),
    ],
    ids=["size", "not validated", "a rank that was named"],
)
def test_nothing_is_timed_alone_where_it_decides_nothing(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    bench = Bench(monkeypatch, NEVER, NEVER, NEVER)
    assert bench.compress(config).status == "written"
    assert bench.seen == []


def test_what_gained_nothing_is_put_back_until_the_model_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = Bench(monkeypatch, LITTLE, NEVER, QUICK)
    bench.speedup = lambda race: [0.9, 0.95, 1.2][race]
    result = bench.compress(Config(budget=FixedRank(8)), tmp_path / "small.onnx")
    assert result.status == "written"
    assert ranks(result) == [None, None, 8]
    assert [site.reason for site in result.sites] == [
        "put back, since the model was not faster: rank 8 saved least for its damage (0.15 of 1 ms)",
        "put back, since the model was not faster: rank 8 is not measurably faster here than dense (1.1 of 1 ms)",
        "",
    ]
    assert result.message.endswith(
        "small.onnx; 2 weights that gained least put back, since the model was not faster with all of them low-rank"
    )
    stored = {tensor.name for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert stored == {"w0", "w1", "w2.left", "w2.right"}
    assert len(bench.seen) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx"]


def test_a_model_that_is_never_faster_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(monkeypatch, QUICK, QUICK, QUICK)
    bench.speedup = lambda race: 0.9
    result = bench.compress(Config(budget=FixedRank(8)), tmp_path / "small.onnx")
    assert result.status == "rejected"
    assert bench.races == 3  # with three weights, two, and one
    assert ranks(result).count(None) == 2
    assert result.message.startswith("not written: not faster: 1 ms -> 1 ms, speedup 0.900")
    assert result.message.endswith("; 2 weights that gained least had been put back")
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_breaks_is_not_mended_by_putting_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, NEVER, NEVER)
    bench.speedup = lambda race: 0.9
    result = bench.compress(Config(budget=FixedRank(8), gates=Gates(max_error=1e-6)))
    assert result.status == "rejected"
    assert bench.races == 1
    assert ranks(result) == [8, 8, 8]


def test_ranks_that_were_asked_for_whatever_they_cost_are_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, NEVER, NEVER)
    bench.speedup = lambda race: 0.9
    result = bench.compress(Config(budget=Alpha(1.0), allow_larger=True))
    assert (result.status, bench.races, bench.seen) == ("rejected", 1, [])


def test_a_speedup_is_searched_for_and_then_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, NEVER, QUICK)
    bench.speedup = lambda race: [1.1, 1.27, 1.26][race]
    result = bench.compress(Config(budget=Speedup(1.25), rank_multiple=8))
    assert result.status == "written"
    assert [(step.speedup, step.accepted) for step in result.search] == [(1.1, False), (1.27, True)]
    assert result.search[0].keep == pytest.approx(1.0 - 5.0 * 0.2 / 3.0)
    assert result.search[1].keep < result.search[0].keep
    assert all(0.0 < step.error < 1.0 for step in result.search)
    assert result.sites[1].reason == NO_FASTER_RANK


def test_a_speedup_that_the_last_measurement_misses_is_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, QUICK, QUICK)
    bench.speedup = lambda race: [1.26, 1.2, 1.34, 1.3][race]
    result = bench.compress(Config(budget=Speedup(1.25), rank_multiple=8))
    assert result.status == "written"
    assert result.verdict is not None
    assert result.verdict.latency is not None
    assert result.verdict.latency.speedup == 1.3
    assert [step.speedup for step in result.search] == [1.26, 1.34]
    assert result.search[1].keep < result.search[0].keep


def test_a_speedup_out_of_reach_is_told_with_the_best_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, QUICK, QUICK, QUICK)
    bench.speedup = lambda race: 1.4 + race / 10
    result = bench.compress(Config(budget=Speedup(3.0), rank_multiple=8))
    assert result.status == "unchanged"
    fastest = result.search[-1]
    assert result.message == (
        f"out of reach: the fastest model tried is {fastest.speedup:.3g} times as fast (relative error of its outputs: "
        f"{fastest.error:.3g}), below --speedup 3"
    )
    assert {site.reason for site in result.sites} == {"no model tried was 3 times as fast"}


def test_a_speedup_that_only_the_search_saw_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(monkeypatch, QUICK, QUICK, QUICK)
    bench.speedup = lambda race: [1.26, 1.2][min(race, 1)]
    result = bench.compress(Config(budget=Speedup(1.25), rank_multiple=8), tmp_path / "small.onnx")
    assert result.status == "rejected"
    assert result.message.startswith("not written: not as fast as --speedup 1.25: 1 ms -> 1 ms, speedup 1.200")
    assert list(tmp_path.iterdir()) == []
