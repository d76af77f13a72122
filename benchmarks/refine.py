"""What solving the factors again brings, at what cost, with how many feeds: ``python -m benchmarks.refine``.

For each model and share of MACs kept: the outputs' relative error and the model's figures of merit on samples that
calibration did not see, for plain SVD, whitened factors with energy ranks, the planner's, and the planner's refined.
Beside that the same over the number of calibration feeds, and what the stage takes in time and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table
from benchmarks.planning import RESULTS, SEED, Judge
from benchmarks.planning_cases import Case, Feeds, load_case
from benchmarks.planning_variants import BALF, VARIANTS, Workbench
from benchmarks.saved_results import circumstances

MODELS = ("vgg", "vit", "minilm")
SHARES = (0.6, 0.45, 0.33)
COUNTS = (8, 32, 128, 512)
"""Feeds of one sample, of which the library keeps a quarter to itself to judge by."""

CURVE_SHARE = 0.45
PLANNED, REFINED = "planner, fast", "refined"
WAYS = {variant.name: variant for variant in VARIANTS if variant.name in ("plain SVD", BALF, PLANNED)}


@dataclass(frozen=True, slots=True)
class Point:
    """One way at one share and number of feeds."""

    way: str
    share: float
    feeds: int
    error: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the stage took once, in processor seconds, which other work on the machine disturbs less than wall time.

    `pass_seconds` is one pass of the original over the feeds that the stage learns from.
    """

    share: float
    feeds: int
    seconds: float
    pass_seconds: float
    peak_megabytes: float
    refined: int
    weights: int
    error_before: float | None
    error_after: float | None


@dataclass(slots=True)
class ModelResult:
    """Everything about one model."""

    model: str
    data: str
    circumstances: Mapping[str, Any]
    metrics: Mapping[str, float]
    points: list[Point] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)


def main() -> None:
    arguments = _parse()
    for name in arguments.models:
        case = load_case(name, quick=arguments.quick)
        judge = Judge(case)
        result = ModelResult(name, case.data, circumstances(), judge.metrics)
        for found in _measure(case, judge, case.calibration, arguments.shares, tuple(WAYS)):
            (result.costs if isinstance(found, Cost) else result.points).append(found)  # type: ignore[arg-type]
            print(found, flush=True)
            save(arguments.out, result)
        for count in arguments.counts:
            feeds = one_sample_feeds(case.calibration, count)
            for found in _measure(case, judge, feeds, (CURVE_SHARE,), (PLANNED,)):
                (result.costs if isinstance(found, Cost) else result.curve).append(found)  # type: ignore[arg-type]
                print(found, flush=True)
                save(arguments.out, result)


def _measure(
    case: Case, judge: Judge, feeds: Feeds, shares: Sequence[float], ways: Sequence[str]
) -> Iterator[Point | Cost]:
    with tempfile.TemporaryDirectory() as scratch:
        bench = Workbench(case.path, feeds, Path(scratch), seed=SEED)
        for share in shares:
            for way in ways:
                planned = bench.plan(WAYS[way], "macs", share)
                with bench.build(WAYS[way], planned.choices) as model:
                    yield Point(way, share, len(feeds), *judge.judge(model))
            begin = time.process_time()
            refined = bench.refine(WAYS[PLANNED], planned.choices)
            seconds = time.process_time() - begin
            with bench.build(WAYS[PLANNED], planned.choices, refined.spool) as model:
                yield Point(REFINED, share, len(feeds), *judge.judge(model))
            begin = time.process_time()
            for feed in bench.calibration:
                bench.original.run(feed)
            report = refined.report
            yield Cost(
                share=share,
                feeds=len(bench.calibration),
                seconds=seconds,
                pass_seconds=time.process_time() - begin,
                peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                refined=sum(weight.refined for weight in report.weights),
                weights=len(report.weights),
                error_before=report.error_before,
                error_after=report.error_after,
            )


def one_sample_feeds(feeds: Feeds, count: int) -> Feeds:
    """`count` feeds of one sample each, evenly spread over those that there are."""
    singles = [
        {name: value[row : row + 1] for name, value in feed.items()}
        for feed in feeds
        for row in range(len(next(iter(feed.values()))))
    ]
    return tuple(singles[index * len(singles) // count] for index in range(min(count, len(singles))))


def save(directory: Path, result: ModelResult) -> None:
    """JSON, and the tables made from it as Markdown beside it; results of other models there are kept."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / "refine.json"
    kept = json.loads(place.read_text(encoding="utf-8"))["models"] if place.is_file() else []
    by_name = {model["model"]: model for model in (*kept, asdict(result))}
    data = {"schema": 1, "models": [by_name[name] for name in MODELS if name in by_name]}
    place.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (directory / "refine.md").write_text(markdown(data), encoding="utf-8")


def markdown(data: Mapping[str, Any]) -> str:
    """The whole report."""
    lines = [
        "# Refinement: factors solved again on the compressed model's own inputs",
        "",
        "Made by `python -m benchmarks.refine`. `error` is the relative L2 error of the model's outputs on samples",
        "that calibration did not see. All ways write the plain form; `refined` starts from the planner's factors and",
        "keeps their ranks.",
        "",
    ]
    for model in data["models"]:
        lines += _model(model)
    return "\n".join(lines)


def _model(model: Mapping[str, Any]) -> list[str]:
    around = model["circumstances"]
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in model["metrics"].items())
    lines = [f"## {model['model']}", "", f"{model['data'][0].upper()}{model['data'][1:]}.", ""]
    lines += [f"Measured on {around['date']}: {around['machine']}. Uncompressed: {metrics}.", ""]
    lines += [verdict(model), ""]
    names = list(model["metrics"])
    rows = [
        (f"{p['share']:g}", p["way"], f"{p['error']:.4f}", *(f"{p['metrics'][name]:.4f}" for name in names))
        for p in model["points"]
    ]
    lines += [*table(("kept MACs", "way", "error", *names), rows), ""]
    if model["curve"]:
        rows = [
            (str(p["feeds"]), p["way"], f"{p['error']:.4f}", *(f"{p['metrics'][name]:.4f}" for name in names))
            for p in model["curve"]
        ]
        lines += [f"Over the number of feeds of one sample, at {CURVE_SHARE:g} of the MACs:", ""]
        lines += [*table(("feeds", "way", "error", *names), rows), ""]
    rows = [
        (
            f"{c['share']:g}",
            str(c["feeds"]),
            f"{c['refined']} of {c['weights']}",
            "" if c["error_before"] is None else f"{c['error_before']:.4f} -> {c['error_after']:.4f}",
            f"{c['seconds']:.1f}",
            f"{c['seconds'] / c['pass_seconds']:.1f}",
            f"{c['peak_megabytes']:.0f}",
        )
        for c in model["costs"]
    ]
    head = ("kept MACs", "calibration feeds", "refined", "held-out error", "processor s", "in passes", "peak MB")
    lines += [
        "What the stage took, factorizations included, and its own held-out error; peak memory is of the whole run:"
    ]
    return [*lines, "", *table(head, rows), ""]


def verdict(model: Mapping[str, Any]) -> str:
    """How much less error refinement leaves, and whether it is ever worse."""
    pairs = []
    for points in (model["points"], model["curve"]):
        errors = {(p["way"], p["share"], p["feeds"]): p["error"] for p in points}
        pairs += [
            (share, feeds, errors[PLANNED, share, feeds], error)
            for (way, share, feeds), error in errors.items()
            if way == REFINED
        ]
    worse = [f"{share:g} of the MACs with {feeds} feeds" for share, feeds, before, after in pairs if after > before]
    gains = ", ".join(f"{after / before:.2f} ({share:g}, {feeds} feeds)" for share, feeds, before, after in pairs)
    text = f"Worse than the planner's at {', '.join(worse)}." if worse else "Nowhere worse than the planner's."
    return f"{text} Error relative to the planner's: {gains}."


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer judged samples")
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=MODELS, metavar=",".join(MODELS))
    parser.add_argument("--shares", type=_numbers(float), default=SHARES, metavar="S,...")
    parser.add_argument("--counts", type=_numbers(int), default=COUNTS, metavar="N,...")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of refine.json and refine.md")
    return parser.parse_args()


def _numbers(kind: type[float] | type[int]) -> Any:
    return lambda text: tuple(kind(part) for part in text.split(",") if part)


if __name__ == "__main__":
    main()
