"""A user's own measure of a model: a Python function that is given a way to run the model and says how good it is."""

from __future__ import annotations

import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lowrank_onnx.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Predict: TypeAlias = "Callable[[Mapping[str, Any]], Mapping[str, Any]]"
"""Runs the model once: input name -> array to output name -> array."""

MetricFunction: TypeAlias = Callable[[Predict], object]
"""What a user writes. It brings its own data, and returns a number, or for each sample whether the model is right."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of one model.

    Attributes
    ----------
    value : the number, or the share of samples that are true.
    samples : (n,) bool, where the function told the samples apart; else None.
    """

    value: float
    samples: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A task metric.

    Attributes
    ----------
    name : for reports.
    function : given a `Predict`, returns a finite number, or a 1-D array of bool (or 0 and 1), one for each sample.
        Of such an array the share of ones counts, and bounds can be given for data drawn like the samples.
    higher_is_better : False for errors and losses.
    """

    name: str
    function: MetricFunction = field(repr=False)
    higher_is_better: bool = True

    @classmethod
    def of(cls, function: MetricFunction) -> Metric:
        """The metric of a function, by its name; its attribute ``higher_is_better = False`` declares a loss."""
        return cls(getattr(function, "__name__", repr(function)), function, _declared(function))

    def measure(self, predict: Predict) -> Score:
        """What the metric says of a model.

        Raises
        ------
        UsageError
            The function failed, or returned something else.
        """
        try:
            value = self.function(predict)
        except Exception as error:  # whatever the user's function raises is theirs to mend
            raise UsageError(f"metric {self.name} failed: {_reason(error)}") from error
        return self._score(value)

    def _score(self, value: Any) -> Score:
        import numpy as np

        if isinstance(value, numbers.Real) and math.isfinite(value):
            return Score(float(value))
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "fiub" and np.isfinite(array):
            return Score(float(array))
        if array.ndim == 1 and array.size and array.dtype.kind in "fiub" and np.isin(array, (0, 1)).all():
            samples = array.astype(np.bool_)
            return Score(float(samples.mean()), samples)
        shown = repr(value) if array.size <= 1 else f"{array.dtype} of shape {array.shape}"
        raise UsageError(
            f"metric {self.name} returned {shown}: expected a finite number, or a 1-D array with 1 or 0 for each sample"
        )


def load_metric(place: str) -> Metric:
    """Load ``FILE.py:FUNCTION``.

    The file is run as Python, with all that it may do: it must be one that you trust. A function attribute
    ``higher_is_better = False`` declares a metric that is better when it is lower.

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
    function = getattr(_load_module(Path(file), place), name, None)
    if not callable(function):
        raise UsageError(f"--metric {place}: {file} has no function {name}")
    return Metric(place, function, _declared(function))


def _declared(function: MetricFunction) -> bool:
    return bool(getattr(function, "higher_is_better", True))


def _load_module(path: Path, place: str) -> Any:
    name = f"_metric_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--metric {place}: {path} can't be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything that the user's file raises
        raise UsageError(f"--metric {place}: {path} failed to load: {_reason(error)}") from error
    return module


def _reason(error: BaseException) -> str:
    """The kind and the first line of what was raised."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
