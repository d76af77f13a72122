"""What is asked of one factorization, checked once."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any, get_args

from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.rank import RankTarget
from lowrank_onnx.linalg.solve import Method, SolverOptions


@dataclass(frozen=True, slots=True)
class FactorRequest:
    """The arguments of `lowrank_onnx.linalg.factor` that don't depend on where it runs.

    Raises
    ------
    FactorizationError
        unless exactly one of `rank` and `target` is given, or for a rank that is not a whole number.
    """

    rank: int | None = None
    target: RankTarget | None = None
    options: SolverOptions = field(default_factory=SolverOptions)
    second_moment: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.target is None):
            given = "nothing" if self.rank is None else f"rank {self.rank} and a target"
            raise FactorizationError(f"{given} given: expected one of rank, error, energy, spectral")
        try:
            operator.index(self.rank or 0)
        except TypeError:
            raise FactorizationError(f"rank {self.rank!r}: expected a whole number, e.g. int(share * side)") from None

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse what isn't a matrix, or doesn't have the rank.

        Raises
        ------
        FactorizationError
            for a shape that is not 2-D or has an empty side, or a rank outside 1 to min(in, out).
        """
        if len(shape) != 2 or 0 in shape:
            raise FactorizationError(f"array of shape {shape}: expected a matrix (in, out) with no empty side")
        if self.rank is not None and not 1 <= self.rank <= min(shape):
            raise FactorizationError(
                f"rank {self.rank} for a matrix of shape {shape}: expected 1 to {min(shape)}, its smaller side"
            )


def checked_options(
    method: Method, power_iterations: int, oversampling: int | None, tolerance: float, seed: int
) -> SolverOptions:
    """The options of a solver, each in its range.

    Raises
    ------
    FactorizationError
        for a method that doesn't exist or a number out of range.
    """
    if method not in get_args(Method):
        raise FactorizationError(f"method {method!r}: expected one of {', '.join(get_args(Method))}")
    if power_iterations < 1:
        raise FactorizationError(f"power_iterations {power_iterations}: expected at least 1 (1 is RSVD)")
    if oversampling is not None and oversampling < 0:
        raise FactorizationError(f"oversampling {oversampling}: expected 0 or more")
    if not 1.0 < tolerance < math.inf:
        raise FactorizationError(f"tolerance {tolerance:g}: expected a normalised error above 1, e.g. 1.02")
    if seed < 0:
        raise FactorizationError(f"seed {seed}: expected a whole number of at least 0")
    return SolverOptions(
        method=method,
        power_iterations=power_iterations,
        oversampling=oversampling or 0,
        tolerance=tolerance,
        seed=seed,
    )
