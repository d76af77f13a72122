"""Second moments of what the sites read, streamed from runs on feeds: the statistics of whitened factorization."""

from lowrank_onnx.moments.moment import (
    Moment,
    advise_rows,
    effective_rank,
    estimate_condition,
    merge_moments,
    without_rows,
)
from lowrank_onnx.moments.streaming import keep_moment, observe_moments, stream_moments

__all__ = [
    "Moment",
    "advise_rows",
    "effective_rank",
    "estimate_condition",
    "keep_moment",
    "merge_moments",
    "observe_moments",
    "stream_moments",
    "without_rows",
]
