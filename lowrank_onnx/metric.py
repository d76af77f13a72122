"""A user's own measure of a model: a Python function that is given a way to run the model and returns a number."""

from __future__ import annotations

import importlib.util
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from scipy.stats import beta

from lowrank_onnx.errors import UsageError
from lowrank_onnx.types import Array, Feed

Predict: TypeAlias = Callable[[Feed], Mapping[str, Array]]
"""Runs the model once: input name -> array to output name -> array."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A task metric.

    Attributes
    ----------
    name : for reports.
    function : given `Predict`, returns a finite number; it brings its own data.
    higher_is_better : False for errors and losses.
    """

    name: str
    function: Callable[[Predict], object]
    higher_is_better: bool = True

    def measure(self, predict: Predict) -> float:
        """The metric of a model.

        Raises
        ------
        UsageError
            The function failed, or returned something other than a finite number.
        """
        try:
            value = self.function(predict)
        except Exception as error:  # whatever the user's function raises is theirs to mend
            raise UsageError(f"metric {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UsageError(f"metric {self.name} returned {value!r}: expected a finite number")
        return float(value)

    def drop(self, original: float, candidate: float) -> float:
        """How much worse the candidate is, in the metric's own unit; negative where it is better."""
        return original - candidate if self.higher_is_better else candidate - original


def load_metric(place: str) -> Metric:
    """Load ``FILE.py:FUNCTION``.

    The file is run as Python: it must be one that you trust. A function attribute ``higher_is_better = False`` declares
    a metric that is better when it is lower.

    Raises
    ------
    UsageError
        The text isn't of that form, or the file or the function isn't there or doesn't load.
    """
    file, separator, name = place.rpartition(":")
    if not separator or not name.isidentifier() or not file.endswith(".py"):
        raise UsageError(f"--metric {place}: expected FILE.py:FUNCTION, e.g. accuracy.py:top1")
    if not Path(file).is_file():
        raise UsageError(f"--metric {place}: no such file {file}")
    module = _load_module(Path(file), place)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--metric {place}: {file} has no function {name}")
    return Metric(place, function, bool(getattr(function, "higher_is_better", True)))


def _load_module(path: Path, place: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--metric {place}: {path} can't be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything that the user's file raises
        raise UsageError(f"--metric {place}: {path} failed to load: {type(error).__name__}: {error}") from error
    return module


def agreement_bound(agreeing: int, samples: int, confidence: float = 0.95) -> float:
    """The share of all samples that agree at least, given how many of a random draw did.

    The lower end of the one-sided interval of Clopper and Pearson, "The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26, 1934: it holds with probability `confidence` at least,
    whatever the true share. The samples must be independent draws of what the model will see.
    """
    if not 0 <= agreeing <= samples or samples < 1:
        raise ValueError(f"{agreeing} of {samples} samples: expected 0 <= agreeing <= samples, and some")
    return float(beta.ppf(1.0 - confidence, agreeing, samples - agreeing + 1)) if agreeing else 0.0
