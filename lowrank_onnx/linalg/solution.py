"""What every solver returns: leading singular triplets, not yet balanced or measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowrank_onnx.linalg.backend import DeviceArray


@dataclass(frozen=True, slots=True)
class Triplets:
    """Approximate singular triplets of an (m, n) matrix W, on its device: ``W ~ scaled_left @ right.T``.

    Attributes
    ----------
    scaled_left : (m, k), orthogonal columns of norms `values`: the left singular vectors times the singular values.
    values : (k,), descending.
    right : (n, k), orthonormal columns.
    solver : what ran.
    residual : a lower estimate of ``||W - scaled_left @ right.T||_2`` at rank `residual_rank`, or None where the solver
        doesn't come by one.
    residual_rank : the rank that `residual` is for.

    The product is a projection of W, so ``||W - product||_F**2`` is W's energy minus the sum of the squared values.
    """

    scaled_left: DeviceArray
    values: DeviceArray
    right: DeviceArray
    solver: str
    residual: float | None = None
    residual_rank: int = 0

    def named(self, solver: str) -> Triplets:
        """The same with another description."""
        return replace(self, solver=solver)
