"""How much a model loses at a given size, by how its factors and ranks are chosen: ``python -m benchmarks.planning``.

For each model, way and share kept: the outputs' relative error and the model's figures of merit on samples that
calibration did not see, and the latency against the original, interleaved. Beside that: what a default run costs,
counted in passes of the original over the feeds that calibrate (without those held out of them, as in the report of a
run), and what becomes of 8 calibration samples.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.planning_cases import Case, load_case
from benchmarks.planning_report import WHOLE, markdown
from benchmarks.planning_variants import BALF, VARIANTS, Variant, Workbench
from lowrank_onnx import Config, KeepMacs, KeepParams, compress
from lowrank_onnx.accounting import versions
from lowrank_onnx.choose import CostName
from lowrank_onnx.evaluate import Feeds, Session, load_feeds, measure_latency, open_session
from lowrank_onnx.latency.machine import machine_key
from lowrank_onnx.linalg.lapack import beside_runtime
from lowrank_onnx.results import PlanTrial
from lowrank_onnx.types import Array

RESULTS = Path(__file__).parent / "results"
MODELS = ("vgg", "vit", "minilm")
SHARES = (0.8, 0.6, 0.5, 0.4)
SEED = 0
TIMED_SECONDS = 2.0
"""For one pair of models; it ends sooner where the difference is plain."""

FEW_SHARE = 0.6

SCHEMA = 3
"""Of the saved results: those of another one are not kept beside new ones."""


@dataclass(frozen=True, slots=True)
class Point:
    """One way at one share: what was asked and kept, and what that made of the model."""

    variant: str
    cost: CostName
    asked: float
    kept: float
    error: float
    metrics: Mapping[str, float]
    speedup: float
    speedup_low: float
    speedup_high: float
    trials: tuple[PlanTrial, ...]


@dataclass(frozen=True, slots=True)
class FewSamples:
    """One way at one share, calibrated with 8 samples.

    `like_error` is the error on other samples of the source of those 8, `error` that on the judged samples.
    """

    variant: str
    asked: float
    like_error: float
    error: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DefaultRun:
    """What one run with default options and feeds costs, beside one pass of the original over the feeds that calibrate.

    `passes` compares wall times, `processor_passes` the processor's, which other work on the machine disturbs less.
    """

    pass_seconds: float
    seconds: Mapping[str, float]
    passes: float
    processor_passes: float
    passes_without_timing: float


@dataclass(slots=True)
class ModelResult:
    """Everything about one model."""

    model: str
    data: str
    date: str
    machine: str
    versions: Mapping[str, str]
    metrics: Mapping[str, float]
    points: list[Point] = field(default_factory=list)
    few: list[FewSamples] = field(default_factory=list)
    run: DefaultRun | None = None


def main() -> None:
    arguments = _parse()
    results: list[ModelResult] = []
    for name in arguments.models:
        case = load_case(name, quick=arguments.quick)
        judge = Judge(case)
        if arguments.few_samples:
            print_few(name, measure_few(case, judge))
            continue
        result = ModelResult(name, case.data, today(), machine_key(Config().provider, None), versions(), judge.metrics)
        results.append(result)
        print(f"{name}: {result.metrics}", flush=True)
        for point in measure_points(case, judge, arguments.shares, arguments.seconds):
            result.points.append(point)
            print(f"  {point.cost} {point.asked:g} {point.variant}: {point.error:.4f} {point.speedup:.2f}x", flush=True)
        result.few.extend(measure_few(case, judge))
        result.run = measure_default_run(case)
        save(arguments.out, results)
    if results:
        print((arguments.out / "planning.md").read_text(encoding="utf-8"))


def print_few(name: str, few: Iterable[FewSamples]) -> None:
    print(f"{name}, calibrated with 8 samples, {FEW_SHARE:g} of the parameters kept:", flush=True)
    for way in few:
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in way.metrics.items())
        print(f"  {way.variant}: error {way.like_error:.4f}, judged {way.error:.4f}, {figures}", flush=True)


class Judge:
    """The original's outputs on the judged feeds, to which those of compressed models are compared."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._expected = _outputs(open_session(case.path), case)
        self.metrics = case.metrics(self._expected)

    def judge(self, model: Session) -> tuple[float, Mapping[str, float]]:
        """The relative L2 error of the outputs over all feeds, and the figures of merit."""
        actual = _outputs(model, self._case)
        missed = energy = 0.0
        for got, expected in zip(actual, self._expected, strict=True):
            wide = expected.astype(np.float64)
            missed += float(np.sum(np.square(got - wide)))
            energy += float(np.sum(np.square(wide)))
        if not math.isfinite(missed):
            raise ValueError(f"{self._case.name}: the compressed model's outputs aren't finite")
        return math.sqrt(missed / energy), self._case.metrics(actual)


def _outputs(model: Session, case: Case) -> list[Array]:
    return [np.asarray(model.run(feed)[model.outputs[0]]) for feed in case.judged]


def measure_points(case: Case, judge: Judge, shares: tuple[float, ...], seconds: float) -> Iterator[Point]:
    with beside_runtime(), tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        bench = Workbench(case.path, case.calibration, place, seed=SEED)
        timed = load_feeds(case.calibration[:4], bench.original.inputs)
        for cost in case.costs:
            for share in shares:
                for variant in VARIANTS:
                    yield _measure_point(bench, judge, variant, cost, share, timed, seconds)
                yield _measure_whole(bench, case, judge, place, cost, share, timed, seconds)


def _measure_point(
    bench: Workbench, judge: Judge, variant: Variant, cost: CostName, share: float, timed: Feeds, seconds: float
) -> Point:
    planned = bench.plan(variant, cost, share)
    with bench.build(variant, planned.choices) as model:
        error, metrics = judge.judge(model)
        latency = measure_latency(bench.original, model, timed, seed=SEED, max_seconds=seconds)
    speeds = (latency.speedup, latency.speedup_low, latency.speedup_high)
    return Point(variant.name, cost, share, planned.kept, error, metrics, *speeds, planned.trials)


def _measure_whole(
    bench: Workbench, case: Case, judge: Judge, place: Path, cost: CostName, share: float, timed: Feeds, seconds: float
) -> Point:
    """What the program makes of it, with every form and with the factors refined."""
    budget = KeepParams(share) if cost == "parameters" else KeepMacs(share)
    config = Config(budget=budget, objective="size", seed=SEED)
    output = place / "whole.onnx"
    result = compress(case.path, config, feeds=case.calibration, output=output, force=True, cache=place / "cache")
    if result.after is None:
        raise RuntimeError(f"{case.name}, {share:g} of the {cost}: {result.message}")
    before, after = (
        totals.site_parameters if cost == "parameters" else totals.macs or 0 for totals in (result.before, result.after)
    )
    model = open_session(output)
    error, metrics = judge.judge(model)
    latency = measure_latency(bench.original, model, timed, seed=SEED, max_seconds=seconds)
    speeds = (latency.speedup, latency.speedup_low, latency.speedup_high)
    return Point(WHOLE, cost, share, after / before, error, metrics, *speeds, result.trials)


def measure_few(case: Case, judge: Judge) -> Iterator[FewSamples]:
    """Factors from the moments of 8 samples beside those that need none, with energy ranks and with sensitivity."""
    whitened = next(variant for variant in VARIANTS if variant.name == BALF)
    ways = (VARIANTS[0], whitened, *(variant for variant in VARIANTS if variant.sensitivity != "off"))
    unweighted = replace(ways[2], name="unweighted, sensitivity fast", method="svd", whiten=False)
    alike = Judge(replace(case, judged=case.like_few, metrics=lambda outputs: {}))
    with beside_runtime(), tempfile.TemporaryDirectory() as scratch:
        bench = Workbench(case.path, case.few, Path(scratch), seed=SEED)
        for variant in (*ways, unweighted):
            planned = bench.plan(variant, "parameters", FEW_SHARE)
            with bench.build(variant, planned.choices) as model:
                error, metrics = judge.judge(model)
                yield FewSamples(variant.name, FEW_SHARE, alike.judge(model)[0], error, metrics)


def measure_default_run(case: Case) -> DefaultRun:
    """Time `compress` with default options but the budget, between two passes of the original."""
    original = open_session(case.path)
    given = load_feeds(case.calibration, original.inputs)

    def one_pass() -> None:
        for feed in given:
            original.run(feed)

    one_pass()
    before = _timed(one_pass)
    config = Config(budget=KeepParams(FEW_SHARE), seed=SEED)
    spent: dict[str, float] = {}

    def run() -> None:
        spent.update(compress(case.path, config, feeds=case.calibration).seconds)

    wall, processor = _timed(run)
    after = _timed(one_pass)
    pass_wall, pass_processor = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    untimed = wall - spent.get("validate", 0.0)
    return DefaultRun(pass_wall, spent, wall / pass_wall, processor / pass_processor, untimed / pass_wall)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def save(directory: Path, results: list[ModelResult]) -> None:
    """JSON, and the tables made from it as Markdown beside it; results of other models there are kept."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / "planning.json"
    saved = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    kept = saved["models"] if saved.get("schema") == SCHEMA else []
    by_name = {model["model"]: model for model in (*kept, *map(asdict, results))}
    data = {"schema": SCHEMA, "models": [by_name[name] for name in MODELS if name in by_name]}
    place.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (directory / "planning.md").write_text(markdown(data), encoding="utf-8")


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shares, fewer judged samples, short timing")
    parser.add_argument("--few-samples", action="store_true", help="only 8 calibration samples; print, save nothing")
    parser.add_argument("--models", type=_models, default=MODELS, metavar=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of planning.json and planning.md")
    arguments = parser.parse_args()
    arguments.shares = (0.6, 0.4) if arguments.quick else SHARES
    arguments.seconds = 1.0 if arguments.quick else TIMED_SECONDS
    return arguments


def _models(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(MODELS)}")
    return names


if __name__ == "__main__":
    main()
