"""Sessions that take as long as they are told to, on a clock that only their runs move on; and models to time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper as h

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.evaluate.session import CPU, Runner
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.table import LatencyTable, Unmeasured
from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import Feed, Site
from tests.passes.models import make_model, strip, value, weight

NS_PER_WEIGHT = 50
CALL_NS = 20_000


class Workbench:
    """A clock that only runs move on, and sessions that take as long as they have weights (and a call costs 20 us)."""

    def __init__(self, cost: Callable[[int, int], float] | None = None) -> None:
        self.now = 0
        self.runs: list[int] = []
        self.opened: list[onnx.ModelProto] = []
        self._cost = cost or (lambda weights, _: CALL_NS + NS_PER_WEIGHT * weights)

    def clock(self) -> int:
        return self.now

    def open(self, model: bytes) -> Runner:
        proto = onnx.load_from_string(model)
        self.opened.append(proto)
        return _Timed(self, sum(math.prod(t.dims) for t in proto.graph.initializer if t.name != "bias"))

    def run(self, weights: int) -> None:
        self.runs.append(weights)
        self.now += round(self._cost(weights, self.now))

    def table(self, directory: Path | None = None, **options: Any) -> LatencyTable:
        arguments = {"provider": CPU, "threads": 1, "open_model": self.open, "clock": self.clock, **options}
        return LatencyTable(directory, **arguments)


class _Timed:
    def __init__(self, bench: Workbench, weights: int) -> None:
        self.inputs = (InputSpec("x", "float32", ()),)
        self.outputs = ("y",)
        self.logits = frozenset[str]()
        self._bench, self._weights = bench, weights

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        assert list(feed) == ["x"]
        self._bench.run(self._weights)
        return {"y": None}


def found_in(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Site, ...]]:
    skeleton, _ = strip(model)
    return skeleton, find_sites(skeleton, op_types=OP_TYPES)[0]


def layers(*sizes: tuple[int, int]) -> onnx.ModelProto:
    """MatMuls in parallel on one input, with weights of these sizes."""
    nodes = [h.make_node("MatMul", ["in", f"w{i}"], [f"y{i}"], name=f"layer{i}") for i in range(len(sizes))]
    weights = {f"w{i}": weight(*size, seed=i) for i, size in enumerate(sizes)}
    return make_model(nodes, [value("in")], [value(f"y{i}") for i in range(len(sizes))], weights)


def measure(
    table: LatencyTable, model: onnx.ModelProto, shape: tuple[int, ...] = (5, 64)
) -> list[LatencyCurve | Unmeasured]:
    skeleton, sites = found_in(model)
    return [table.curve(skeleton, site, site.forms[0], shape) for site in sites]


def measured(table: LatencyTable, model: onnx.ModelProto, shape: tuple[int, ...] = (5, 64)) -> LatencyCurve:
    (curve,) = measure(table, model, shape)
    assert isinstance(curve, LatencyCurve)
    return curve


def reason(table: LatencyTable, model: onnx.ModelProto, shape: tuple[int, ...] = (5, 64)) -> str:
    (curve,) = measure(table, model, shape)
    assert isinstance(curve, Unmeasured)
    return curve.reason


def milliseconds(weights: int) -> float:
    return (CALL_NS + NS_PER_WEIGHT * weights) / 1e6
