"""The whole model on feeds that were not solved for: how far each sample's outputs are from the original's.

A few samples near a decision have most of the outputs' error, and decide its sum by chance. So what is compared is the
typical sample: the mean logarithm of the errors' ratio, sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.evaluate.accumulate import OutputAccumulator
from lowrank_onnx.evaluate.feed_arrays import is_float
from lowrank_onnx.types import Feed, overall_error

NEGLIGIBLE = 1e-14
"""Squared error, relative to the outputs, that counts as rounding."""

CLEARLY_WORSE = 1.5
"""Standard errors by which the summed errors of all samples may not be larger."""


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """Of one model against the original.

    Attributes
    ----------
    overall : of all outputs on all feeds, as a verdict has it (`overall_error`).
    squares : (samples), of each the squared error relative to the outputs of its feed. A feed whose inputs and outputs
        don't have their first axis in common is one sample.
    """

    overall: float
    squares: NDArray[np.float64]

    @property
    def typical(self) -> float:
        """The geometric mean of the samples' errors; that of all outputs where no sample has an error, or it is NaN."""
        if not self.squares.size or not np.isfinite(self.squares).all():
            return self.overall
        return math.exp(0.5 * float(np.log(self.squares + NEGLIGIBLE).mean()))


class ErrorSum:
    """Adds up `Errors`, feed by feed."""

    def __init__(self) -> None:
        self._totals: dict[str, OutputAccumulator] = {}
        self._squares: list[NDArray[np.float64]] = []

    def add(self, feed: Feed, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Take in both models' outputs for one feed; all that the first has."""
        for name, value in expected.items():
            self._totals.setdefault(name, OutputAccumulator(name)).add(value, actual[name])
        numbers = {name: value for name, value in expected.items() if _is_numeric(value)}
        lengths = {np.shape(value)[:1] for value in (*feed.values(), *numbers.values())}
        samples = lengths.pop()[0] if len(lengths) == 1 and () not in lengths else 1
        squares = np.zeros(samples)
        for name, value in numbers.items():
            if np.shape(actual[name]) == value.shape:
                squares += _squares(value, actual[name], samples)
        if numbers:
            self._squares.append(squares)

    def finish(self) -> Errors:
        """Of everything added."""
        total = overall_error([one.statistics() for one in self._totals.values()])
        return Errors(total, np.concatenate(self._squares) if self._squares else np.zeros(0))


def helps(after: Errors, before: Errors, *, margin: float = 0.0) -> bool:
    """Whether a model is nearer to the original than another one: on the typical sample, and not clearly worse in all.

    Where no output has numbers, or a sample's error isn't finite, the sum alone tells.

    Parameters
    ----------
    margin : standard errors by which the typical sample has to be nearer; with a margin, one sample is too few.
    """
    if not math.isfinite(after.overall):
        return False
    differences = after.squares - before.squares
    if not differences.size or not np.isfinite(differences).all():
        return after.overall < before.overall
    ratios = _log_ratios(after, before)
    if margin and ratios.size < 2:
        return False
    if float(ratios.mean()) + margin * float(ratios.std()) / math.sqrt(ratios.size) >= 0.0:
        return False
    chance = float(differences.std()) * math.sqrt(differences.size)
    return float(differences.sum()) <= CLEARLY_WORSE * chance


def _log_ratios(after: Errors, before: Errors) -> NDArray[np.float64]:
    ratios: NDArray[np.float64] = 0.5 * np.log((after.squares + NEGLIGIBLE) / (before.squares + NEGLIGIBLE))
    return ratios


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and is_float(value.dtype) and value.ndim > 0


def _squares(expected: NDArray[Any], actual: NDArray[Any], samples: int) -> NDArray[np.float64]:
    y, z = (value.astype(np.float64).reshape(samples, -1) for value in (expected, actual))
    finite = np.isfinite(y)  # a mask's infinities
    y, z = np.where(finite, y, 0.0), np.where(finite, z, 0.0)
    energy = float(np.mean(np.sum(y * y, axis=1)))
    squares: NDArray[np.float64] = np.sum(np.square(z - y), axis=1) / (energy if energy > 0.0 else 1.0)
    return squares
