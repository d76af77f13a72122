"""One calibration, many budgets: what a model loses as it gets smaller and faster, and the one point to write.

The pipeline comes in as a function, so that this module knows nothing of it. What the feeds teach and the factors are
kept in a cache between the points; only planning, rewriting and validation are done for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from lowrank_onnx.config import Budget, Config
from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.scores import share_confidence
from lowrank_onnx.model_io import ModelSource, check_target, load_model, scratch_directory, stage_model
from lowrank_onnx.observed import FeedSource
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.results import CompressionResult, SweepPoint, SweepResult

PickRule = Literal["knee", "speedup", "error", "agreement", "drop"]


@dataclass(frozen=True, slots=True)
class Pick:
    """Which point of a sweep to take.

    - "knee": where more compression begins to cost more than it brings;
    - "speedup": the least error at `value` times the original's speed or more;
    - "error": the most compressed with a relative error of the outputs of at most `value`;
    - "agreement": the most compressed with the original's first answer in at least the share `value` of samples;
    - "drop": the most compressed with a task metric that is at most `value` worse, in its unit. Where the metric tells
      samples apart, that holds for data drawn like them at 95 % confidence, over all points.
    """

    rule: PickRule
    value: float = 0.0


def parse_pick(text: str) -> Pick:
    """Read ``knee``, ``speedup=S``, ``error=E``, ``agreement=F`` or ``drop=D`` (`UsageError` where it is none)."""
    rule, _, value = text.partition("=")
    try:
        match rule:
            case "knee" if not value:
                return Pick("knee")
            case "speedup" if float(value) >= 1.0:
                return Pick("speedup", float(value))
            case "error" if float(value) > 0.0:
                return Pick("error", float(value))
            case "agreement" if 0.0 < float(value) <= 1.0:
                return Pick("agreement", float(value))
            case "drop" if float(value) >= 0.0:
                return Pick("drop", float(value))
    except ValueError:
        pass
    raise UsageError(
        f"--pick {text}: expected knee, speedup=S (1 or more), error=E (above 0), agreement=F (a share) or drop=D "
        "(0 or more), e.g. --pick speedup=1.3"
    )


class Compress(Protocol):
    """`lowrank_onnx.compress`, as far as a sweep uses it."""

    def __call__(
        self,
        model: ModelSource,
        config: Config,
        /,
        *,
        feeds: FeedSource | None,
        output: Path,
        cache: Path,
        progress: Progress,
    ) -> CompressionResult:
        """Compress `model` and write the result to `output`."""


def sweep(
    model: ModelSource,
    budgets: Sequence[Budget],
    config: Config,
    compress: Compress,
    *,
    feeds: FeedSource | None = None,
    pick: Pick | None = None,
    output: Path | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> SweepResult:
    """Compress a model at several budgets, and write the point that `pick` names to `output`.

    Parameters
    ----------
    model, config, feeds, force, cache, progress : as in `lowrank_onnx.compress`; each budget takes the place of the
        config's.
    budgets : the points, at least one.
    pick, output : given together; without them nothing is written.

    Raises
    ------
    UsageError, OutputError
        An option is not usable as given, or the output can't be written.
    ModelError, FactorizationError
        The model can't be read, run or factorized.
    """
    if not budgets:
        raise UsageError("a sweep needs budgets: e.g. --keep-macs 0.8,0.6,0.4")
    if not config.validate:
        raise UsageError("a sweep compares what it measures: drop --no-validate")
    if (pick is None) != (output is None):
        raise UsageError("--pick and --output go together: the one says which point, the other where it is written")
    if pick is not None and pick.rule == "drop" and config.metric is None:
        raise UsageError(
            f"--pick drop={pick.value:g} is about a metric: give --metric FILE.py:FUNCTION, or --pick error=E"
        )
    if output is not None:
        check_target(load_model(model), output, force=force)
    with scratch_directory(output) as directory, tempfile.TemporaryDirectory(prefix="lowrank-onnx-") as temporary:
        results = []
        with progress.stage("sweeping", len(budgets)) as stage:
            for index, budget in enumerate(budgets):
                result = compress(
                    model,
                    replace(config, budget=budget),
                    feeds=feeds,
                    output=directory / f"{index}.onnx",
                    cache=Path(temporary) if cache is None else cache,
                    progress=progress,
                )
                results.append(result)
                stage.advance(detail=result.message)
        results = [_judged_together(_unplaced(result), len(budgets)) for result in results]
        points = tuple(SweepPoint(result, on_front(result, results)) for result in results)
        picked = None if pick is None else pick_point(points, pick, config)
        if picked is None or output is None:
            return SweepResult(results[0].input, points, None, None, _message(points, pick))
        staged_from = load_model(directory / f"{picked}.onnx")
        with stage_model(staged_from, output, force=force) as staged:
            staged.commit()
    return SweepResult(results[0].input, points, picked, str(output), f"point {picked + 1} written to {output}")


def _unplaced(result: CompressionResult) -> CompressionResult:
    """The result without the place where its model lay while the sweep ran."""
    message = "holds" if result.status == "written" else result.message
    return replace(result, output=None, message=message)


def _judged_together(result: CompressionResult, points: int) -> CompressionResult:
    """The result with bounds of its metric that hold for all points at once: the one that is taken looked good."""
    if result.verdict is None or result.verdict.metric is None:
        return result
    return replace(result, verdict=replace(result.verdict, metric=share_confidence(result.verdict.metric, points)))


def _message(points: Sequence[SweepPoint], pick: Pick | None) -> str:
    """Why nothing was written, and what to do about it."""
    if pick is None:
        return "nothing was written: choose a point with --pick and -o"
    held = [(point.result, found) for point in points if (found := figures(point.result)) is not None]
    if not held:
        return "nothing was written: no point holds, each with its reason; try points that compress less" + (
            "" if points[0].result.config.objective == "size" else ", or --objective size if bytes are enough"
        )
    return f"nothing was written: no point that holds reaches --pick {pick.rule}={pick.value:g}. {_nearest(held, pick)}"


def _nearest(held: Sequence[tuple[CompressionResult, tuple[float, float, float]]], pick: Pick) -> str:
    """What the best of the points, with their `figures`, has in the unit of the pick, and which way to look."""
    match pick.rule:
        case "speedup":
            fastest = 1.0 / min(time for _, (_, time, _) in held)
            return f"The fastest has {fastest:.3g}: ask for that, or add points that compress more"
        case "agreement":
            best = f"{max(_agreement(result) for result, _ in held):.4g}"
        case "drop":
            metrics = [result.verdict.metric for result, _ in held if result.verdict and result.verdict.metric]
            best = f"{min(metric.judged_drop for metric in metrics):.3g}"
        case _:
            best = f"{min(error for _, (error, _, _) in held):.3g}"
    return f"The closest has {best}: ask for that, or add points that compress less"


def figures(result: CompressionResult) -> tuple[float, float, float] | None:
    """Relative error of the outputs, latency and bytes of a point, both relative to the original; None where the model
    did not hold.
    """
    verdict, after = result.verdict, result.after
    if result.status != "written" or verdict is None or after is None:
        return None
    time = 1.0 if verdict.latency is None else 1.0 / verdict.latency.speedup
    return verdict.relative_error, time, after.file_bytes / result.before.file_bytes


def on_front(result: CompressionResult, others: Sequence[CompressionResult]) -> bool:
    """Whether no other point is at least as close, as fast and as small, and better in one of these."""
    own = figures(result)
    if own is None:
        return False
    rivals = (figures(other) for other in others if other is not result)
    return not any(rival is not None and rival != own and all(map(float.__le__, rival, own)) for rival in rivals)


def pick_point(points: Sequence[SweepPoint], pick: Pick, config: Config) -> int | None:
    """The index of the point that `pick` names, or None where none that holds does.

    "Most compressed" is fastest with the objective "latency", smallest with "size".
    """
    held = {i: found for i, point in enumerate(points) if (found := figures(point.result)) is not None}
    cost = 1 if config.objective == "latency" else 2

    def most_compressed(indices: list[int]) -> int | None:
        return min(indices, key=lambda i: held[i][cost], default=None)

    match pick.rule:
        case "speedup":
            fast = [i for i, found in held.items() if 1.0 / found[1] >= pick.value]
            return min(fast, key=lambda i: held[i][0], default=None)
        case "error":
            return most_compressed([i for i, found in held.items() if found[0] <= pick.value])
        case "agreement":
            return most_compressed([i for i in held if _agreement(points[i].result) >= pick.value])
        case "drop":
            return most_compressed([i for i in held if _drops_at_most(points[i].result, pick.value)])
        case "knee":
            return _knee({i: (found[cost], found[0]) for i, found in held.items()})


def _agreement(result: CompressionResult) -> float:
    outputs = result.verdict.outputs if result.verdict is not None else ()
    return min((o.top1_agreement for o in outputs if o.top1_agreement is not None), default=0.0)


def _drops_at_most(result: CompressionResult, limit: float) -> bool:
    metric = None if result.verdict is None else result.verdict.metric
    return metric is not None and metric.within(limit)


def _knee(points: dict[int, tuple[float, float]]) -> int | None:
    """The point farthest below the line from the original to the most compressed, in shares of what they span.

    After Satopaa et al., "Finding a 'Kneedle' in a Haystack" (2011): (relative cost, error), the original is (1, 0).
    """
    if not points:
        return None
    most_saved = max(1.0 - cost for cost, _ in points.values())
    most_error = max(error for _, error in points.values())

    def height(index: int) -> float:
        cost, error = points[index]
        saved = (1.0 - cost) / most_saved if most_saved > 0.0 else 0.0
        return saved - (error / most_error if most_error > 0.0 else 0.0)

    return max(points, key=height)
