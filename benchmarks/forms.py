"""``python -m benchmarks.forms``: what each form gains in time, beside what it saves in multiply-accumulates.

A node alone, dense and in every form that its operator can be written in, each at the ranks whose MACs come nearest to
some shares of the dense ones; all of them timed in turns in onnxruntime. The pass itself writes the nodes.

One thread, and the processor's time of that thread: other work on the machine hardly disturbs it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as h

from benchmarks.forms_report import markdown
from benchmarks.planning import today
from lowrank_onnx.accounting import versions
from lowrank_onnx.config import OP_TYPES, Config
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.evaluate.latency import median_interval
from lowrank_onnx.forms import Form
from lowrank_onnx.latency.machine import machine_key
from lowrank_onnx.latency.site_model import SiteModel, at_rank, build_site_model, draw_input, with_values
from lowrank_onnx.latency.timing import measure_rounds, warm_up
from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import MatrixShape

RESULTS = Path(__file__).parent / "results"
SHARES = (0.75, 0.5, 0.25)
MULTIPLE = 16
"""Ranks are multiples of it, as the planner takes them."""

TOLERANCE = 0.15
"""A rank whose MACs miss the share by more than this part of it doesn't stand for it."""

SECONDS = 4.0
"""Of the processor, for the runs of one shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A node: its operator, the activation that it reads, its weight as ONNX stores it, and its attributes."""

    title: str
    op_type: str
    read: tuple[int, ...]
    weight: tuple[int, ...]
    made: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


def conv(channels: int, out: int, *sizes: int, kernel: int = 3, stride: int = 1) -> Shape:
    """A convolution of batch 1 with "same" padding and a bias."""
    spatial, pad = len(sizes), kernel // 2
    made = tuple((size + 2 * pad - kernel) // stride + 1 for size in sizes)
    window = " x ".join([str(kernel)] * spatial)
    moved = "" if stride == 1 else f", stride {stride}"
    return Shape(
        title=f"{window} Conv {channels} -> {out}, {' x '.join(map(str, sizes))}{moved}",
        op_type="Conv",
        read=(1, channels, *sizes),
        weight=(out, channels, *[kernel] * spatial),
        made=(1, out, *made),
        attributes={"strides": [stride] * spatial, "pads": [pad] * (2 * spatial)},
    )


def matmul(rows: int, in_features: int, out_features: int) -> Shape:
    """A matrix product on some rows."""
    title = f"MatMul {in_features} -> {out_features}, {rows} rows"
    return Shape(title, "MatMul", (rows, in_features), (in_features, out_features), (rows, out_features))


SHAPES = (
    conv(64, 64, 56, 56),
    conv(128, 128, 28, 28),
    conv(256, 256, 14, 14),
    conv(256, 256, 28, 28),
    conv(512, 512, 14, 14),
    conv(512, 512, 7, 7),
    conv(512, 256, 28, 28),
    conv(128, 256, 28, 28, stride=2),
    conv(64, 64, 28, 28, kernel=5),
    conv(256, 256, 200, kernel=5),
    conv(256, 256, 28, 28, kernel=1),
    matmul(16, 768, 768),
    matmul(128, 384, 1536),
    matmul(128, 768, 768),
    matmul(128, 3072, 768),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One form at one rank: the share of the dense MACs, and dense time over its time with a 95 % interval."""

    form: str
    asked: float
    rank: int
    macs: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ShapeResult:
    """One shape: milliseconds of the dense node, and every form."""

    title: str
    dense_ms: float
    forms: tuple[Result, ...]


def site_model(shape: Shape) -> SiteModel:
    """The node as a model of its own."""
    weights = [onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=shape.weight)]
    inputs = ["x", "w"]
    if shape.op_type == "Conv":
        weights.append(onnx.TensorProto(name="b", data_type=onnx.TensorProto.FLOAT, dims=shape.weight[:1]))
        inputs.append("b")
    graph = h.make_graph(
        [h.make_node(shape.op_type, inputs, ["y"], name="node", **shape.attributes)],
        "shape",
        [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape.read)],
        [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape.made)],
        weights,
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    (site,), _ = find_sites(model, op_types=OP_TYPES)
    return build_site_model(model, site, shape.read)


def rank_for_share(form: Form, shape: MatrixShape, positions: int, share: float) -> int | None:
    """The multiple of 16 whose MACs come nearest to a share of the dense ones; None where none comes near."""
    dense = shape.parameters * positions
    ranks = range(MULTIPLE, form.largest_rank(shape) + 1, MULTIPLE)
    near = min(ranks, key=lambda rank: abs(form.macs(shape, rank, positions) - share * dense), default=None)
    if near is None or abs(form.macs(shape, near, positions) / dense - share) > TOLERANCE * share:
        return None
    return near


def find_options(shape: Shape, model: SiteModel) -> Iterator[tuple[Form, float, int]]:
    """Every form at the rank for every share."""
    positions = math.prod(shape.made) // model.site.counted_features
    for form in model.site.forms:
        for share in SHARES:
            rank = rank_for_share(form, model.site.shape, positions, share)
            if rank is not None:
                yield form, share, rank


def measure_shape(shape: Shape, seconds: float, clock: Callable[[], int] = time.thread_time_ns) -> ShapeResult:
    """Time a shape dense and in all forms, in turns."""
    model = site_model(shape)
    options = list(find_options(shape, model))
    feed = draw_input(model)
    protos = [model.proto, *(at_rank(model, form, rank) for form, _, rank in options)]
    timed = [warm_up(open_session(with_values(proto), threads=1), feed, clock) for proto in protos]
    rounds = measure_rounds(timed, feed, clock() + round(seconds * 1e9), 0, clock)
    positions = math.prod(shape.made) // model.site.counted_features
    dense = model.site.shape.parameters * positions
    found = []
    for column, (form, share, rank) in enumerate(options, start=1):
        ratios = [row[0] / row[column] for row in rounds]
        low, high = median_interval(ratios, 0.05)
        macs = form.macs(model.site.shape, rank, positions) / dense
        found.append(Result(form.name, share, rank, macs, statistics.median(ratios), low, high))
    return ShapeResult(shape.title, statistics.median(row[0] for row in rounds) / 1e6, tuple(found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"of the processor for each shape (default {SECONDS:g})"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of forms.json and forms.md")
    arguments = parser.parse_args()
    results = []
    for shape in SHAPES:
        results.append(measure_shape(shape, arguments.seconds))
        print(f"{shape.title}: {results[-1].dense_ms:.3f} ms", flush=True)
    data = {
        "schema": 1,
        "date": today(),
        "machine": machine_key(Config().provider, 1),
        "versions": versions(),
        "shapes": [asdict(result) for result in results],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "forms.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "forms.md").write_text(markdown(data), encoding="utf-8")
    print(markdown(data))


if __name__ == "__main__":
    main()
