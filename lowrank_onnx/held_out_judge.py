"""Judges plans by samples that the factors were not made of, where there are too few to spare any."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from lowrank_onnx.attempt import MOST_IN_MEMORY
from lowrank_onnx.calibration import approximated
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate import load_feeds
from lowrank_onnx.evaluate.accumulate import OutputComparison
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.forms import MATRIX, PAIR, Form
from lowrank_onnx.held_out import HeldOut, typical
from lowrank_onnx.observed import Observed
from lowrank_onnx.sensitivity.overridable import OverridableModel, make_overridable
from lowrank_onnx.types import Array, Feed, WeightRef, overall_error
from lowrank_onnx.weights import SharedWeight


class HeldOutPlanError:
    """The typical relative output error of plans over all samples, each with factors that the others made.

    No model is built: one session in which all weights can be overridden serves all plans and folds.

    Parameters
    ----------
    skeleton, groups : the model that plans are made for, and its weights.
    observed : the original, which runs.
    held_out : the factors of each fold.
    directory : for the original's outputs.
    decode : the values of a weight that is stored with an encoding.
    """

    def __init__(
        self,
        skeleton: onnx.ModelProto,
        groups: Sequence[SharedWeight],
        observed: Observed,
        held_out: HeldOut,
        directory: Path,
        decode: Callable[[WeightRef], Array] | None = None,
    ) -> None:
        self._skeleton, self._groups, self._observed = skeleton, groups, observed
        self._held_out, self._directory, self._decode = held_out, directory, decode

    @property
    def affordable(self) -> bool:
        """Whether all weights at once may be in memory, as those of a plan are."""
        return sum(group.weight.itemsize * math.prod(group.weight.shape) for group in self._groups) <= MOST_IN_MEMORY

    def __call__(self, choices: Sequence[Choice]) -> float:
        """Run the plan on all samples; infinite where outputs can't be compared."""
        if all(choice.candidate.rank is None for choice in choices):
            return 0.0
        errors = []
        for fold, expected in enumerate(self._expected):
            changed = _Changed(self._session, self._values(fold, choices))
            for _, wanted, actual in expected.pair_with(changed):
                comparison = OutputComparison(self._session)
                comparison.add(wanted, actual)
                errors.append(overall_error(comparison.statistics()))
        return typical(errors)

    def _values(self, fold: int, choices: Sequence[Choice]) -> dict[str, Array]:
        """What takes the place of each weight that the plan replaces, by the name under which it can."""
        found = {}
        for group, choice in zip(self._groups, choices, strict=True):
            name, rank = self._copy.names.get(group.weight), choice.candidate.rank
            if name is not None and rank is not None:
                factors = self._held_out.factors(fold, group.weight)
                found[name] = approximated(factors, group, _as_factorized(group, choice.candidate.form), rank)
        return found

    @cached_property
    def _copy(self) -> OverridableModel:
        readers = {group.weight: group.sites for group in self._groups}
        return make_overridable(self._skeleton, readers, readers=readers, decode=self._decode)

    @cached_property
    def _session(self) -> Runner:
        return self._observed.run(self._copy.skeleton)

    @cached_property
    def _expected(self) -> tuple[KeptOutputs, ...]:
        folds = (load_feeds(fold.tried, self._observed.session.inputs) for fold in self._held_out.folds)
        return tuple(KeptOutputs(self._session, feeds, self._directory) for feeds in folds)


def _as_factorized(group: SharedWeight, name: str | None) -> Form:
    """The form whose factors are at hand: a matrix in other forms is, but for rounding, the pair."""
    form = next(form for form in group.forms if form.name == name)
    return PAIR if form.family == MATRIX else form


@dataclass(frozen=True, slots=True)
class _Changed:
    """A model with some of its weights overridden."""

    model: Runner
    values: dict[str, Array]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The model's own."""
        return self.model.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model's own."""
        return self.model.outputs

    @property
    def logits(self) -> frozenset[str]:
        """The model's own."""
        return self.model.logits

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once, with the other values."""
        return self.model.run({**feed, **self.values}, outputs)
