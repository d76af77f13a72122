"""From a model that was built to the verdict on it: outputs and latency against the original."""

from __future__ import annotations

from lowrank_onnx.config import Config
from lowrank_onnx.evaluate import Feeds, Session, compare_outputs, judge, measure_latency, open_session
from lowrank_onnx.model_io import StagedModel
from lowrank_onnx.observed import Observed
from lowrank_onnx.progress import Progress
from lowrank_onnx.revision import required_speedup
from lowrank_onnx.types import Verdict

TIMING_SECONDS = 20.0
"""Time for the paired measurement; it ends sooner where the difference is plain."""


def judge_staged(observed: Observed, staged: StagedModel, config: Config, progress: Progress) -> Verdict:
    """The verdict on a model in its file, on the held-out feeds."""
    candidate = open_session(staged.path, provider=config.provider)
    return compare(observed.session, candidate, observed.held_out, config, config.objective == "latency", progress)


def compare(
    original: Session, candidate: Session, feeds: Feeds, config: Config, require_faster: bool, progress: Progress
) -> Verdict:
    """Compare outputs and latency on some feeds, and hold both to the options."""
    with progress.stage("comparing outputs", len(feeds)) as stage:
        outputs = compare_outputs(original, candidate, feeds, progress=stage)
    with progress.stage("timing", None) as stage:
        latency = measure_latency(
            original, candidate, feeds, seed=config.seed, max_seconds=TIMING_SECONDS, progress=stage
        )
    gates = config.gates
    providers = tuple(dict.fromkeys((*original.providers_used, *candidate.providers_used)))
    return judge(
        outputs,
        latency,
        feeds,
        providers,
        gates=gates,
        require_faster=require_faster,
        min_speedup=required_speedup(config),
    )
