"""What solving the factors again brings, at what cost, with how many feeds: ``python -m benchmarks.refine``.

For each model and share of MACs kept: the outputs' relative error and the model's
figures of merit on samples that calibration did not see, for plain SVD, whitened factors with energy ranks, the
planner's, and the planner's refined. Beside that the same over the number of calibration feeds, what the errors of the
weights make together if each is replaced alone, and what the stage takes in time and memory. Each model is saved share
by share; ``--resume`` goes on with what a run that was broken off has left.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planning import RESULTS, SEED
from benchmarks.planning_cases import Case, Feeds, load_case
from benchmarks.planning_variants import BALF, VARIANTS, Workbench
from benchmarks.refine_cost import Cost, refine_timed
from benchmarks.refine_report import CURVE_SHARE, PLANNED, REFINED, markdown
from benchmarks.saved_results import circumstances
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate import Session, compare_outputs, open_session
from lowrank_onnx.evaluate.accumulate import OutputAccumulator
from lowrank_onnx.linalg.lapack import beside_runtime
from lowrank_onnx.refine import Refined
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, overall_error

MODELS = ("vgg", "vit", "minilm", "craft")
CURVED = ("vgg", "vit", "minilm")
"""Models of which the error over the number of feeds is measured."""

SHARES = (0.6, 0.45, 0.33)
COUNTS = (8, 32, 128, 512, 2048, 8192)
"""Feeds of one sample, of which the library keeps a quarter to itself to judge by. Those that a case hasn't itself come
from the whole data set: ``apt-get install dataset-fashion-mnist``."""

RUNS = 3
"""Of the stage, at the shares at which all ways are compared: time scatters."""

FEW_JUDGED = 8
"""Judged feeds on which weights are replaced one by one."""

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
class Alone:
    """Errors on the first `feeds` judged feeds: of the weights replaced one by one, squared and added up, and the root
    taken; of all of them planned, and refined. What refinement can make good is what is above the first.

    `seen_planned` and `seen_refined` are those of all of them on the feeds that they were solved on: as far as they are
    below the others, more feeds would help. None in results that don't tell.
    """

    share: float
    feeds: int
    one_by_one: float
    planned: float
    refined: float
    seen_planned: float | None = None
    seen_refined: float | None = None


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
    alone: list[Alone] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """All about one share and number of feeds."""

    points: tuple[Point, ...]
    cost: Cost
    alone: Alone | None

    def keep(self, points: list[Point], result: ModelResult) -> None:
        """Add this to a model's results."""
        points += self.points
        result.costs.append(self.cost)
        if self.alone is not None:
            result.alone.append(self.alone)


def main() -> None:
    arguments = _parse()
    for name in arguments.models:
        case = load_case(name, quick=arguments.quick)
        judge = RefineJudge(case)
        result = ModelResult(name, case.data, circumstances(), judge.metrics)
        if arguments.resume:
            result = resumed(arguments.out, result)
        counts = arguments.counts if name in CURVED else ()
        for points, feeds, shares, ways in (
            (result.points, case.calibration, arguments.shares, tuple(WAYS)),
            *(
                (result.curve, feeds, (CURVE_SHARE,), (PLANNED,))
                for feeds in (curve_feeds(case, count) for count in counts)
                if feeds
            ),
        ):
            done = {point.share for point in points if point.way == REFINED and point.feeds == len(feeds)}
            for found in _measure(case, judge, feeds, [share for share in shares if share not in done], ways):
                found.keep(points, result)
                print(found, flush=True)
                save(arguments.out, result)


def _measure(
    case: Case, judge: RefineJudge, feeds: Feeds, shares: Sequence[float], ways: Sequence[str]
) -> Iterator[Found]:
    if not shares:
        return
    with beside_runtime(), tempfile.TemporaryDirectory() as scratch:
        bench = Workbench(case.path, feeds, Path(scratch), seed=SEED)
        for share in shares:
            points = []
            for way in ways:
                planned = bench.plan(WAYS[way], "macs", share)
                with bench.build(WAYS[way], planned.choices) as model:
                    points.append(Point(way, share, len(feeds), *judge.judge(model)))
            runs = RUNS if len(ways) > 1 else 1
            refined, cost = refine_timed(bench, WAYS[PLANNED], planned.choices, share, runs)
            with bench.build(WAYS[PLANNED], planned.choices, refined.spool) as model:
                points.append(Point(REFINED, share, len(feeds), *judge.judge(model)))
            alone = _alone(bench, judge, planned.choices, refined, share) if len(ways) > 1 else None
            yield Found(tuple(points), cost, alone)


def _alone(
    bench: Workbench, judge: RefineJudge, choices: Sequence[Choice], refined: Refined, share: float
) -> Alone | None:
    """What the weights do one by one, where that takes few runs."""
    if share != CURVE_SHARE:
        return None
    variant = WAYS[PLANNED]

    def errors(spool: FactorSpool | None) -> tuple[float, float]:
        with bench.build(variant, choices, spool) as model:
            seen = overall_error(compare_outputs(bench.original, model, bench.calibration))
            return judge.judge_few(model), seen

    squares = 0.0
    for one in bench.one_by_one(choices):
        with bench.build(variant, one) as model:
            squares += judge.judge_few(model) ** 2
    (planned, seen_planned), (after, seen_after) = errors(None), errors(refined.spool)
    return Alone(share, judge.few, math.sqrt(squares), planned, after, seen_planned, seen_after)


class RefineJudge:
    """The original's outputs on the judged feeds, to which those of compressed models are compared."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._expected = self._outputs(open_session(case.path), len(case.judged))
        self.metrics = case.metrics(self._expected)
        self.few = min(len(case.judged), FEW_JUDGED)

    def judge(self, model: Session) -> tuple[float, Mapping[str, float]]:
        """The relative L2 error of the outputs over all feeds, and the figures of merit."""
        actual = self._outputs(model, len(self._case.judged))
        error = self._error(actual)
        if not math.isfinite(error):
            raise ValueError(f"{self._case.name}: the compressed model's outputs aren't finite")
        return error, self._case.metrics(actual)

    def judge_few(self, model: Session) -> float:
        """The relative L2 error of the outputs over the first `few` feeds."""
        return self._error(self._outputs(model, self.few))

    def _outputs(self, model: Session, count: int) -> list[Array]:
        return [np.asarray(model.run(feed)[model.outputs[0]]) for feed in self._case.judged[:count]]

    def _error(self, actual: Sequence[Array]) -> float:
        total = OutputAccumulator("output", logits=False)
        for expected, got in zip(self._expected, actual, strict=False):
            total.add(expected, got)
        return total.statistics().error


def resumed(directory: Path, fresh: ModelResult) -> ModelResult:
    """What is saved of a model, where machine, versions and data are the fresh result's; else the fresh result."""
    place = directory / "refine.json"
    for model in json.loads(place.read_text(encoding="utf-8"))["models"] if place.is_file() else ():
        same = all(model["circumstances"][key] == fresh.circumstances[key] for key in ("machine", "versions"))
        if model["model"] == fresh.model and same and model["data"] == fresh.data:
            kinds = {"points": Point, "curve": Point, "costs": Cost, "alone": Alone}
            return ModelResult(**model | {key: [kind(**one) for one in model[key]] for key, kind in kinds.items()})
    return fresh


def curve_feeds(case: Case, count: int) -> Feeds:
    """`count` feeds of one sample each, of the case's own samples where there are so many; none if there are none."""
    own = one_sample_feeds(case.calibration, count)
    return own if len(own) == count else case.more(count)


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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer judged samples")
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=MODELS, metavar=",".join(MODELS))
    parser.add_argument("--shares", type=_numbers(float), default=SHARES, metavar="S,...")
    parser.add_argument("--counts", type=_numbers(int), default=COUNTS, metavar="N,...")
    parser.add_argument("--resume", action="store_true", help="leave out what --out already holds of this machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of refine.json and refine.md")
    return parser.parse_args()


def _numbers(kind: type[float] | type[int]) -> Any:
    return lambda text: tuple(kind(part) for part in text.split(",") if part)


if __name__ == "__main__":
    main()
