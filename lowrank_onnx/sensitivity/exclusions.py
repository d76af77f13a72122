"""Which weights a user should leave out, by what compressing each alone does to the outputs.

The planner leaves such weights dense by itself. To exclude them saves the time that they cost, and keeps a plan from
resting on figures that are hardly known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from lowrank_onnx.sensitivity.damage import Sensitivity
from lowrank_onnx.types import WeightRef

FEWEST_WEIGHTS = 5
"""With fewer, none can be called unlike the others."""

DEVIATIONS = 3.0
"""How many scaled median absolute deviations above the median an outlier lies: the rule of Hampel, "The influence curve
and its role in robust estimation", JASA 69, 1974, here on logarithms."""

LEAST_FACTOR = 10.0
"""How many times the median an outlier costs at least, however alike the others are."""

_TO_STANDARD_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured of one weight.

    Attributes
    ----------
    sensitivity : the measured effect.
    saved : parameters saved at the first rank of `sensitivity`.
    mildest : the predicted relative squared error of the outputs at the largest rank that saves anything.
    """

    sensitivity: Sensitivity
    saved: int
    mildest: float

    @property
    def price(self) -> float:
        """Relative squared error of the outputs for each parameter saved, at the first rank tried."""
        return self.sensitivity.output_errors[0] / self.saved if self.saved > 0 else 0.0


def find_exclusions(probes: Mapping[WeightRef, Probe], max_error: float | None) -> dict[WeightRef, str]:
    """The weights to leave out, with the reason for each.

    Parameters
    ----------
    probes : of all weights that were measured.
    max_error : the relative error of the outputs that is allowed, where that was asked for.

    Returns
    -------
    A weight is here if its outputs broke, if it alone costs more than the whole error allowed at every rank that saves
    anything, or if it costs far more for each parameter saved than the weights of this model do (`DEVIATIONS`).
    """
    outlier = _outlier_price([probe.price for probe in probes.values()])
    reasons = {weight: _reason(probe, max_error, outlier) for weight, probe in probes.items()}
    return {weight: reason for weight, reason in reasons.items() if reason}


def _reason(probe: Probe, max_error: float | None, outlier: tuple[float, float]) -> str:
    typical, limit = outlier
    if not math.isfinite(probe.sensitivity.importance):
        return f"compressing it breaks the outputs ({probe.sensitivity.problem})"
    if max_error is not None and probe.mildest > max_error**2:
        alone = math.sqrt(probe.mildest)
        return f"alone, at its largest rank, it costs a relative error of {alone:.3g}, where {max_error:g} is allowed"
    if probe.price > limit:
        return f"it costs {probe.price / typical:.0f} times as much for each parameter saved as is typical here"
    return ""


def _outlier_price(prices: list[float]) -> tuple[float, float]:
    """The typical price, and the one beyond which a weight is unlike the others."""
    logarithms = [math.log(price) for price in prices if 0.0 < price < math.inf]
    if len(logarithms) < FEWEST_WEIGHTS:
        return math.inf, math.inf
    middle = statistics.median(logarithms)
    deviation = statistics.median(abs(logarithm - middle) for logarithm in logarithms)
    spread = max(DEVIATIONS * _TO_STANDARD_DEVIATION * deviation, math.log(LEAST_FACTOR))
    return math.exp(middle), math.exp(middle + spread)
