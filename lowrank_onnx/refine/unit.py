"""What is solved at once: one weight, or all weights that share a first factor, as one of all their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.refine.steps import Member
from lowrank_onnx.refine.target import Target
from lowrank_onnx.refine.write_form import Parts
from lowrank_onnx.spool import FactorSpool, StoredFactors


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """The weights that one solution is for.

    Attributes
    ----------
    weights : in their order; several only in a form that they are written together in.
    target : what they should compute, side by side.
    columns : of the targets of the whole step.
    """

    weights: tuple[Replaced, ...]
    target: Target
    columns: NDArray[np.intp]

    def stored(self, spool: FactorSpool) -> StoredFactors:
        """The factors of the first weight, whose form and rank all have."""
        return self.weights[0].factors(spool)

    def parts(self, spool: FactorSpool) -> Parts:
        """Their factors as one."""
        first, *others = [one.factors(spool).parts() for one in self.weights]
        rights = [first["right"], *(other["right"] for other in others)] if others else []
        return first | ({"right": np.concatenate(rights, axis=-1)} if others else {})

    def put(self, spool: FactorSpool, parts: Parts, solver: str) -> None:
        """Give each weight its share of such factors."""
        begin = 0
        for one in self.weights:
            end = begin + one.group.shape.out_features
            own = parts if len(self.weights) == 1 else {**parts, "right": parts["right"][..., begin:end]}
            stored = one.factors(spool)
            spool.put(one.weight, stored.form, stored.rank, own, solver)
            begin = end


def find_units(members: Sequence[Member], targets: Sequence[Target]) -> tuple[Unit, ...]:
    """The units of a step, in the order of their first weights."""
    ends = np.cumsum([target.W.shape[-1] for target in targets])
    together: dict[object, list[int]] = {}
    for index, member in enumerate(members):
        bundle = member.replaced.form.bundle
        together.setdefault(index if bundle is None else bundle, []).append(index)
    return tuple(
        Unit(
            weights=tuple(members[index].replaced for index in found),
            target=_side_by_side([targets[index] for index in found]),
            columns=np.concatenate([np.arange(ends[i] - targets[i].W.shape[-1], ends[i]) for i in found]),
        )
        for found in together.values()
    )


def _side_by_side(targets: Sequence[Target]) -> Target:
    if len(targets) == 1:
        return targets[0]
    W = np.concatenate([target.W for target in targets], axis=-1)
    return Target(W, np.ones((1, 1, 1), W.dtype), None, None)
