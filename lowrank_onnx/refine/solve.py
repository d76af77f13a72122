"""One weight solved again at its rank, and how hard it is pulled towards what it was.

The factors minimise ``||X' L R - T||**2 + l ||L R - W||**2`` for the inputs X' of the compressed model. That is reduced
rank regression (Izenman, "Reduced-rank regression for the multivariate linear model", J. Multivariate Analysis 5, 1975)
with a ridge that pulls to W instead of to zero: with M the solution of full rank and H = X'' X' + l I, the loss is
``tr (L R - M)' H (L R - M)`` and a constant, which is the problem of whitened factorization for the weight M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank_onnx import linalg
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.factorize import FactorizeOptions, weight_seed
from lowrank_onnx.linalg.ridge import pulled_solution
from lowrank_onnx.refine.regression import Regression
from lowrank_onnx.types import Array, WeightRef

RIDGES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of l to choose from, in units of the mean eigenvalue of X'' X'."""

FIRST_RIDGE = RIDGES.index(0.03)


@dataclass(frozen=True, slots=True)
class Solution:
    """Factors of one weight, (groups, in, r) and (groups, r, out), the ridge they were solved with, and their error."""

    left: Array
    right: Array
    ridge: float
    error: float


def choose_ridge(
    fit: Regression,
    validate: Regression,
    weight: WeightRef,
    W: Array,
    rank: int,
    stored: Callable[[tuple[Array, Array]], tuple[Array, Array]],
    options: FactorizeOptions,
) -> Solution | None:
    """Solve with the ridge whose factors have least error on the validating rows; None where there are no rows.

    Parameters
    ----------
    fit, validate : the equations of the rows to solve for and of the others.
    weight : which; part of the seed.
    W : (groups, in, out) of the original, in the metric of the targets.
    rank : r.
    stored : rounds factors as they will be stored.
    options : how to factorize.
    """
    if not is_usable(fit) or not is_usable(validate):
        return None
    tried: dict[int, Solution] = {}

    def attempt(index: int) -> Solution:
        if index not in tried:
            left, right = solve_pair(fit, weight, W, rank, RIDGES[index], options)
            tried[index] = Solution(left, right, RIDGES[index], validate.error(*stored((left, right))))
        return tried[index]

    return attempt(_descend(lambda index: attempt(index).error, FIRST_RIDGE, len(RIDGES)))


def is_usable(regression: Regression) -> bool:
    """Whether there are rows, all groups have inputs that aren't all 0, and nothing overflowed."""
    parts = (regression.gram, regression.cross, regression.energy)
    finite = all(np.isfinite(part).all() for part in parts)
    return regression.rows > 0 and finite and all(float(np.trace(gram)) > 0.0 for gram in regression.gram)


def _descend(error: Callable[[int], float], start: int, count: int) -> int:
    """The place of a local minimum, by steps from `start`."""
    here = start
    for step in (1, -1):
        while 0 <= here + step < count and error(here + step) < error(here):
            here += step
        if here != start:
            break
    return here


def solve_pair(
    fit: Regression, weight: WeightRef, W: Array, rank: int, ridge: float, options: FactorizeOptions
) -> tuple[Array, Array]:
    """(groups, in, r) and (groups, r, out): the best pair of factors for one ridge."""
    factors = []
    for group, (gram, cross) in enumerate(zip(fit.gram, fit.cross, strict=True)):
        pull = ridge * float(np.trace(gram)) / gram.shape[0]
        towards = W[group].astype(np.float64)
        M = pulled_solution(gram, cross, towards, pull, options.device)
        regular = gram + pull * np.eye(gram.shape[0])
        try:
            factors.append(
                linalg.factor(
                    M.astype(W.dtype),
                    rank,
                    method=options.method,
                    power_iterations=options.power_iterations,
                    oversampling=options.oversampling,
                    seed=weight_seed(weight, options.seed, group),
                    device=options.device,
                    second_moment=regular,
                )
            )
        except FactorizationError as error:
            raise FactorizationError(f"weight {weight.name!r}: {error}") from error
    return np.stack([f.left for f in factors]), np.stack([f.right for f in factors])
