"""One weight solved again at its rank, and how hard it is pulled towards what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.factorize import FactorizeOptions, weight_seed
from lowrank_onnx.linalg.request import checked_options
from lowrank_onnx.linalg.ridge import pulled_regression
from lowrank_onnx.refine.regression import Regression
from lowrank_onnx.types import Array, WeightRef

RIDGES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of l to choose from, in units of the mean eigenvalue of X'' X'."""

FIRST_RIDGE = 0.03
"""Where to begin without a better guess."""

TOLERANCE = 1.02
"""How near to optimal the solver "auto" has to be, as in the factorize stage."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One weight and its rank, in the metric of its target.

    Attributes
    ----------
    weight : which; part of the seed and of messages.
    W : (groups, in, out) float32 or float64, of the original.
    rank : r.
    options : how to factorize.
    """

    weight: WeightRef
    W: Array
    rank: int
    options: FactorizeOptions


@dataclass(frozen=True, slots=True)
class Solution:
    """Factors of one weight, (groups, in, r) and (groups, r, out), the ridge they were solved with, and their error."""

    left: Array
    right: Array
    ridge: float
    error: float


def choose_ridge(
    problem: Problem,
    fit: Regression,
    validate: Regression,
    stored: Callable[[tuple[Array, Array]], tuple[Array, Array]],
    start: float,
) -> Solution:
    """Solve with the ridge of `RIDGES` whose factors have least error on the validating rows.

    Parameters
    ----------
    fit, validate : the equations of the rows to solve for and of the others; both usable.
    stored : rounds factors as they will be stored.
    start : the ridge to try first.
    """
    solver = pair_solver(problem, fit)
    tried: dict[int, Solution] = {}

    def attempt(index: int) -> Solution:
        if index not in tried:
            left, right = solver(RIDGES[index])
            tried[index] = Solution(left, right, RIDGES[index], validate.error(*stored((left, right))))
        return tried[index]

    return attempt(_descend(lambda index: attempt(index).error, RIDGES.index(start), len(RIDGES)))


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


def pair_solver(problem: Problem, fit: Regression) -> Callable[[float], tuple[Array, Array]]:
    """From a ridge to the best pair of factors, (groups, in, r) and (groups, r, out)."""
    options = problem.options
    groups = [
        (pulled_regression(gram, cross, W, options.device), float(np.trace(gram)) / len(gram))
        for gram, cross, W in zip(fit.gram, fit.cross, problem.W, strict=True)
    ]

    def solve(ridge: float) -> tuple[Array, Array]:
        factors = []
        for number, (regression, scale) in enumerate(groups):
            seed = weight_seed(problem.weight, options.seed, number)
            settings = checked_options(options.method, options.power_iterations, options.oversampling, TOLERANCE, seed)
            factors.append(regression.solve(ridge * scale, problem.rank, settings))
        return np.stack([left for left, _ in factors]), np.stack([right for _, right in factors])

    return solve
