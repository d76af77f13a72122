"""What each weight costs in time, measured within a share of the time that the model itself takes."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank_onnx.attempt import Workshop
from lowrank_onnx.cache import Cache
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.config import Config
from lowrank_onnx.judging import bounded_seconds
from lowrank_onnx.latency.plan import TOTAL_SECONDS, measure_weights, with_latency
from lowrank_onnx.latency.table import LatencyTable
from lowrank_onnx.progress import Progress

WEIGHT_PASSES = 1.5
"""Time for the weights one by one, in passes of the original over the calibration feeds; but not below
`LEAST_WEIGHT_SECONDS`."""

LEAST_WEIGHT_SECONDS = 0.3


def time_weights(
    workshop: Workshop, weights: Sequence[PlannedWeight], config: Config, kept: Cache, progress: Progress
) -> tuple[PlannedWeight, ...]:
    """The weights with what each of them costs in time, as measured here; as they are where the model was never run."""
    if workshop.observed is None:
        return tuple(weights)

    workshop.observed.rest()
    scale = config.preset.curve_scale

    def open_table(seconds: float) -> LatencyTable:
        return LatencyTable(kept.directory("latency"), provider=config.runs_on, seconds_per_site=scale * seconds)

    found = measure_weights(
        workshop.model.skeleton,
        workshop.groups,
        workshop.observed.sites,
        open_table,
        progress,
        total_seconds=scale * bounded_seconds(workshop.observed, WEIGHT_PASSES, LEAST_WEIGHT_SECONDS, TOTAL_SECONDS),
    )
    return with_latency(weights, [found[group.weight] for group in workshop.groups])
