"""From a model that was built to the verdict on it: outputs, metric and latency against the original."""

from __future__ import annotations

from dataclasses import replace

from lowrank_onnx.config import Config
from lowrank_onnx.evaluate import Feeds, compare_outputs, judge, measure_latency
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.scores import MetricJudge, judge_by
from lowrank_onnx.evaluate.turns import OpenModel
from lowrank_onnx.model_io import StagedModel
from lowrank_onnx.observed import Observed
from lowrank_onnx.outcome import allowed_error
from lowrank_onnx.progress import Progress
from lowrank_onnx.revision import required_speedup
from lowrank_onnx.settle import models_searched
from lowrank_onnx.types import ProviderNodes, Verdict

TIMING_PASSES = 4
"""Time for the paired measurement, in passes of the original over the calibration feeds; but not below
`LEAST_TIMING_SECONDS`, and not above what the effort says."""

LEAST_TIMING_SECONDS = 1.0


def bounded_seconds(observed: Observed, passes: float, least: float, most: float) -> float:
    """What some passes of the original over the calibration feeds take, within bounds."""
    return min(most, max(least, passes * observed.pass_seconds))


def judge_staged(
    observed: Observed, staged: StagedModel, config: Config, metric: MetricJudge | None, progress: Progress
) -> Verdict:
    """The verdict on a model in its file, on the held-out feeds."""
    try:
        return compare(
            observed.session,
            observed.open(staged.path),
            observed.held_out,
            config,
            progress,
            metric=metric,
            require_faster=config.objective == "latency",
            kept=observed.expected,
            models=models_searched(config),
            seconds=bounded_seconds(observed, TIMING_PASSES, LEAST_TIMING_SECONDS, config.preset.timing_seconds),
            asked_error=allowed_error(config),
            note=observed.sessions.note,
        )
    finally:
        observed.rest()


def metric_judge(original: OpenModel, config: Config, models: int = 1) -> MetricJudge | None:
    """Measures the original by the user's metric, where there is one."""
    return None if config.metric is None else judge_by(config.metric, original, models, config.required_drop)


def compare(
    original: OpenModel,
    candidate: OpenModel,
    feeds: Feeds,
    config: Config,
    progress: Progress,
    *,
    metric: MetricJudge | None,
    require_faster: bool = False,
    kept: KeptOutputs | None = None,
    models: int = 1,
    seconds: float | None = None,
    asked_error: float | None = None,
    note: str = "",
) -> Verdict:
    """Compare outputs and latency on some feeds, and hold both to the options; `note` is for the verdict's readers.

    `kept` are the original's outputs on these feeds, if they are known. `asked_error` is the error that a budget asks
    for; without one, that of the gates.
    """
    with progress.stage("comparing outputs", len(feeds)) as stage:
        outputs = compare_outputs(original, candidate, feeds, kept=kept, progress=stage)
    measured = None
    if metric is not None:
        with progress.stage("measuring the metric", None):
            measured = metric(candidate)
    with progress.stage("timing", None) as stage:
        limit = config.preset.timing_seconds if seconds is None else seconds
        warm = metric is None and kept is None  # else the candidate ran on other data, or the original not just now
        latency = measure_latency(
            original, candidate, feeds, seed=config.seed, max_seconds=limit, warm=warm, progress=stage
        )
    gates = config.gates
    providers = tuple(dict.fromkeys((*original.providers_used, *candidate.providers_used)))
    verdict = judge(
        outputs,
        latency,
        feeds,
        providers,
        gates=gates,
        require_faster=require_faster,
        min_speedup=required_speedup(config),
        metric=measured,
        max_drop=config.required_drop,
        asked_error=gates.max_error if asked_error is None else asked_error,
        models=models,
    )
    return replace(verdict, nodes=_placement(original, candidate), notes=(note,) if note else ())


def _placement(original: OpenModel, candidate: OpenModel) -> tuple[ProviderNodes, ...]:
    """What ran where; nothing where onnxruntime doesn't tell."""
    before, after = original.nodes, candidate.nodes
    if before is None or after is None:
        return ()
    return tuple(
        ProviderNodes(name, before.get(name, 0), after.get(name, 0)) for name in dict.fromkeys((*before, *after))
    )
