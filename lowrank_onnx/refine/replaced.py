"""Weights that the plan has replaced, in the forms and at the ranks that they were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_onnx.calibration import stored_layout
from lowrank_onnx.choose import Choice
from lowrank_onnx.forms import Form
from lowrank_onnx.spool import FactorSpool, StoredFactors
from lowrank_onnx.types import Array, WeightRef, numpy_dtype
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class Replaced:
    """One weight with all its sites, its form and its rank, none of which refinement changes."""

    group: SharedWeight
    form: Form
    rank: int

    @property
    def weight(self) -> WeightRef:
        """Where the original is stored."""
        return self.group.weight

    def factors(self, spool: FactorSpool) -> StoredFactors:
        """Its factors as a spool has them."""
        return spool.get(self.weight, self.form, self.rank)

    def product(self, spool: FactorSpool) -> Array:
        """What its factors stand for, in the original's layout and dtype."""
        matrices = self.factors(spool).approximate()
        return stored_layout(matrices, self.group.sites[0]).astype(numpy_dtype(self.weight.dtype))


def replaced_weights(groups: Sequence[SharedWeight], choices: Sequence[Choice]) -> tuple[Replaced, ...]:
    """The weights that aren't left dense."""
    return tuple(
        Replaced(group, group.form(choice.candidate.form), choice.candidate.rank)
        for group, choice in zip(groups, choices, strict=True)
        if choice.candidate.rank is not None
    )
