"""Forms whose values are derived when they are first chosen: whether they hold, and their factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.candidates import Candidate, PlannedWeight, tail_energy
from lowrank_onnx.factorize import weight_seed
from lowrank_onnx.forms import PAIR, Form, Pivoted
from lowrank_onnx.linalg.pivoted import (
    PivotedFactors,
    draw_inputs,
    pivot_factors,
    pivot_order,
    rounding_of_pair,
    rounding_of_pivoted,
)
from lowrank_onnx.spool import FactorSpool, StoredFactors
from lowrank_onnx.types import Array, Curves, WeightRef, numpy_dtype

AS_PAIR = 8.0
"""Rounding of the pivoted form, relative to the pair's, that is taken without regard to anything else."""

SHARE_OF_TRUNCATION = 0.1
"""Rounding, relative to the error of the truncation, that is taken: it adds half a percent to that error."""

AT_ONCE = 0.25
"""Of the rounding that is taken: pivots that have no more are taken without a look at others."""

MOST_UNITS = 4096.0
"""Rounding in units of the dtype's rounding that is never exceeded: beyond it, the order in which a runtime happens to
add would show in the outputs."""


def never(weight: WeightRef) -> bool:
    """No weight's outputs may come in another order."""
    del weight
    return False


def no_biases(weight: WeightRef) -> Sequence[Array]:
    """No node adds anything."""
    del weight
    return ()


@dataclass(frozen=True, slots=True)
class Realiser:
    """Makes the factors of chosen candidates that are not in the spool as they lie.

    Attributes
    ----------
    spool : holds the factorizations; what is made goes there.
    refs : by the planner's name of a weight.
    curves : the errors by rank, by the same name.
    second_moments : (groups, in, in) of the inputs, where known.
    seed : of the inputs on which rounding is measured.
    may_reorder : whether the outputs of a weight may come in another order.
    biases : those (out,) that the nodes of a weight add, where the pivoted form writes them anew.
    """

    spool: FactorSpool
    refs: Mapping[str, WeightRef]
    curves: Mapping[str, Curves]
    second_moments: Mapping[WeightRef, Array]
    seed: int
    may_reorder: Callable[[WeightRef], bool] = never
    biases: Callable[[WeightRef], Sequence[Array]] = no_biases
    _known: dict[tuple[str, str, int], bool] = field(default_factory=dict)
    _inputs: dict[WeightRef, NDArray[np.float64]] = field(default_factory=dict)

    def holds(self, weight: PlannedWeight, candidate: Candidate) -> bool:
        """Whether the candidate can be written with the error that its curve promises; its factors are then there."""
        form = weight.form(candidate.form)
        if not isinstance(form, Pivoted) or candidate.rank is None:
            return True
        key = (weight.name, form.name, candidate.rank)
        if key not in self._known:
            self._known[key] = self._realise_pivoted(weight, form, candidate.rank)
        return self._known[key]

    def _realise_pivoted(self, weight: PlannedWeight, form: Form, rank: int) -> bool:
        ref = self.refs[weight.name]
        stored = self.spool.get(ref, PAIR, rank)
        tail = tail_energy(self.curves[weight.name][form.family], rank)
        found = self._best_pivots(ref, stored, math.sqrt(tail))
        if found is None:
            return False
        pivots, factors = found
        parts = {"left": factors.left, "before": factors.before, "after": factors.after}
        kept = {part: values[None].astype(stored.accumulation) for part, values in parts.items() if values.shape[1]}
        how = "pivoted, outputs reordered" if pivots.order else "pivoted"
        self.spool.put(ref, pivots, rank, kept, f"{stored.solver}, {how}")
        return True

    def _best_pivots(
        self, ref: WeightRef, stored: StoredFactors, truncation: float
    ) -> tuple[Pivoted, PivotedFactors] | None:
        """Pivots that round little: the first or the last columns, else a block in between, else any columns."""
        left, right = stored.values("left")[0], stored.values("right")[0]
        dtype = numpy_dtype(ref.dtype)
        inputs = self._inputs_of(ref, left.shape[0])
        biases: Sequence[Array | None] = self.biases(ref) or (None,)
        pair = max(rounding_of_pair(left, right, inputs, dtype, bias) for bias in biases)
        limit = _rounding_limit(pair, truncation, dtype)
        for forms in self._pivot_choices(ref, right):
            rounded = []
            for form in forms:
                ordered = form.ordered(right)
                factors = pivot_factors(left, ordered, form.start)
                if factors is not None:
                    found = max(
                        rounding_of_pivoted(
                            left, ordered, factors, inputs, dtype, None if bias is None else form.ordered(bias)
                        )
                        for bias in biases
                    )
                    rounded.append((found, form, factors))
                    if found <= AT_ONCE * limit:
                        break
            least = min(rounded, key=lambda entry: entry[0], default=None)
            if least is not None and least[0] <= limit:
                return least[1:]
        return None

    def _pivot_choices(self, ref: WeightRef, right: Array) -> Iterator[list[Pivoted]]:
        """What may be pivots, the simplest first; any columns only where the outputs may come in another order."""
        last = right.shape[1] - right.shape[0]
        for starts in ((0, last), (last // 2, last // 4, 3 * last // 4)):
            yield [Pivoted(start) for start in dict.fromkeys(starts)]
        if self.may_reorder(ref):
            yield [Pivoted(0, pivot_order(right))]

    def _inputs_of(self, ref: WeightRef, in_features: int) -> NDArray[np.float64]:
        if ref not in self._inputs:
            moment = self.second_moments.get(ref)
            seed = weight_seed(ref, self.seed, 0)
            self._inputs[ref] = draw_inputs(in_features, None if moment is None else moment[0], seed)
        return self._inputs[ref]


def _rounding_limit(pair: float, truncation: float, dtype: np.dtype[Any]) -> float:
    unit = float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]
    return min(max(AS_PAIR * max(pair, unit), SHARE_OF_TRUNCATION * truncation), MOST_UNITS * unit)
