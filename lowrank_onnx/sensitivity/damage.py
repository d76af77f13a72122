"""The damage that a planner expects from a weight's tail energy, by the errors that were measured at a few ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_onnx.types import WeightRef

FACTOR_OF_FIT = 2.0
"""How far a measured error may lie from importance x tail energy, up or down, for the model to fit."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The measured effect of one weight.

    Attributes
    ----------
    weight : which.
    ranks : the ranks tried, in the order tried.
    output_errors : at each rank, the relative squared L2 error of the model's outputs with only this weight at that
        rank; infinite where the outputs aren't finite or can't be compared.
    tail_energies : at each rank, the relative squared tail that the caller gave.
    importance : output error per tail energy: the least-squares fit of log error = log importance + log tail, that is
        the geometric mean of the ratios, over the ranks where both are above zero. Infinite if any error is; 0 if the
        weight has no effect.
    fits : every measured error is within a factor of `FACTOR_OF_FIT` of importance x tail. One rank always fits.
    problem : why an error is infinite, or "".
    """

    weight: WeightRef
    ranks: tuple[int, ...]
    output_errors: tuple[float, ...]
    tail_energies: tuple[float, ...]
    importance: float
    fits: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A weight whose effect can't be measured, and why."""

    weight: WeightRef
    reason: str


def fit_importance(energies: Sequence[float], errors: Sequence[float]) -> tuple[float, bool]:
    """The importance, and whether importance x tail explains the errors; `Sensitivity` says how.

    `energies` may be longer than `errors`: of the ranks that weren't tried yet.
    """
    if not all(map(math.isfinite, errors)):
        return math.inf, False
    pairs = [(error, tail) for error, tail in zip(errors, energies, strict=False) if tail > 0.0]
    logarithms = [math.log(error) - math.log(tail) for error, tail in pairs if error > 0.0]
    if not logarithms:
        return 0.0, True
    mean = math.fsum(logarithms) / len(logarithms)
    spread = max(abs(logarithm - mean) for logarithm in logarithms)
    return math.exp(mean), len(logarithms) == len(pairs) and spread <= math.log(FACTOR_OF_FIT)


def interpolate_error(sensitivity: Sensitivity, tail: float) -> float:
    """Predict the relative squared error of the outputs at a tail energy that may not have been measured.

    Between measured points the error is interpolated linearly in log(error) over log(tail) (linearly where one of them
    is 0). Outside it is proportional to the tail, through the nearest point: with one point that is importance x tail.
    The prediction never falls as the tail grows: a point where less was measured than at a smaller tail is raised to
    that, so that noise doesn't reward discarding more. All other points are met exactly.

    Parameters
    ----------
    sensitivity : from `measure_sensitivity`.
    tail : relative squared tail energy, 0 or more, of the same kind as the measured ones.

    Raises
    ------
    ValueError : `tail` is negative, infinite or NaN, or nothing was measured.
    """
    if not 0.0 <= tail < math.inf:
        raise ValueError(f"tail energy {tail!r}: expected a finite number of at least 0")
    points = _rising_points(sensitivity)
    if not points:
        raise ValueError(f"weight {sensitivity.weight.name!r}: nothing was measured to predict from")
    below = max((point for point in points if point[0] <= tail), default=None)
    above = min((point for point in points if point[0] >= tail), default=None)
    if below is not None and below[0] == tail:
        return below[1]
    if tail == 0.0:
        return 0.0
    if below is not None and above is not None:
        return _between(below, above, tail)
    nearest_tail, error = below or above or points[0]
    if error == 0.0 or math.isinf(error):
        return error
    return error * (tail / nearest_tail) if nearest_tail > 0.0 else max(error, sensitivity.importance * tail)


def _rising_points(sensitivity: Sensitivity) -> list[tuple[float, float]]:
    """The measured (tail, error), by rising tail, one for each tail, the errors never falling."""
    highest = 0.0
    rising: dict[float, float] = {}
    for tail, error in sorted(zip(sensitivity.tail_energies, sensitivity.output_errors, strict=True)):
        highest = max(highest, error)
        rising[tail] = highest
    return list(rising.items())


def _between(below: tuple[float, float], above: tuple[float, float], tail: float) -> float:
    (low_tail, low), (high_tail, high) = below, above
    if math.isinf(high):
        return math.inf
    if low_tail == 0.0 or low == 0.0:
        return low + (high - low) * ((tail - low_tail) / (high_tail - low_tail))
    share = (math.log(tail) - math.log(low_tail)) / (math.log(high_tail) - math.log(low_tail))
    error = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return min(high, max(low, error))
