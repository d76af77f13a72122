"""How much time a compression takes for how much quality: presets of what costs time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

EffortLevel: TypeAlias = Literal["fast", "default", "full"]
SensitivityLevel: TypeAlias = Literal["off", "fast", "full"]


@dataclass(frozen=True, slots=True)
class Effort:
    """What one level does.

    Attributes
    ----------
    sensitivity : how closely the effect of each weight is measured; each step takes more ranks and more feeds.
    resolution : a search for an error or a drop ends when the share kept is known to within this much.
    attempt_seconds : for timing one attempt of a search for a speedup, at the most.
    timing_seconds : for timing the result against the original, at the most.
    refine : whether the factors are solved again on the compressed model's own inputs.
    curve_scale : of the time for measuring each weight's latency by rank.
    """

    sensitivity: SensitivityLevel
    refine: bool
    resolution: float
    attempt_seconds: float
    timing_seconds: float
    curve_scale: float


EFFORTS: Mapping[EffortLevel, Effort] = {
    "fast": Effort("off", False, resolution=0.05, attempt_seconds=2.0, timing_seconds=5.0, curve_scale=0.5),
    "default": Effort("fast", True, resolution=0.02, attempt_seconds=5.0, timing_seconds=20.0, curve_scale=1.0),
    "full": Effort("full", True, resolution=0.01, attempt_seconds=10.0, timing_seconds=40.0, curve_scale=2.0),
}
