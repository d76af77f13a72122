"""One weight solved again in its form and at its rank, and how hard it is pulled towards what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.refine.regression import Evidence, JudgedRows, Regression
from lowrank_onnx.refine.write_form import Equations, Parts, Problem, refined_parts
from lowrank_onnx.types import Array, numpy_dtype

RIDGES = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Pulls to choose from, in units of the mean eigenvalue of X'' X'."""

FIRST_RIDGE = 0.03
"""Where to begin without a better guess."""


@dataclass(frozen=True, slots=True)
class Solution:
    """New parts of one weight, the ridge they were solved with, and their error; None and infinite where there are
    none.
    """

    parts: Parts | None
    ridge: float
    error: float


def solve_weight(problem: Problem, evidence: Evidence, start: float) -> Solution:
    """Choose the ridge on the feeds that validate, and solve with it on all feeds.

    Parameters
    ----------
    evidence : its equations and rows usable.
    start : the ridge to try first.

    Returns
    -------
    The error is that of the parts that were solved without the feeds that validate. Should those of all feeds, which
    know these rows, not have less, their equations went wrong: then it is these parts that are returned.
    """
    found = choose_ridge(problem, evidence.fit, evidence.validate, start)
    if found.parts is None or not is_usable(evidence.whole):
        return found
    last = _attempt(problem, part_solver(problem, evidence.whole), found.ridge, evidence.validate)
    return replace(found, parts=last.parts) if last.error <= found.error else found


def choose_ridge(problem: Problem, fit: Regression, validate: JudgedRows, start: float) -> Solution:
    """Solve with the ridge of `RIDGES` whose parts, as stored, have least error on the validating rows.

    Parameters
    ----------
    fit, validate : the equations of the rows to solve for, and the others; both usable.
    start : the ridge to try first.
    """
    solver = part_solver(problem, fit)
    tried: dict[int, Solution] = {}

    def attempt(index: int) -> Solution:
        if index not in tried:
            tried[index] = _attempt(problem, solver, RIDGES[index], validate)
        return tried[index]

    return attempt(_descend(lambda index: attempt(index).error, RIDGES.index(start), len(RIDGES)))


def _attempt(problem: Problem, solver: Callable[[float], Parts | None], ridge: float, validate: JudgedRows) -> Solution:
    try:
        parts = solver(ridge)
    except FactorizationError:  # so small a pull doesn't make the equations regular
        parts = None
    if parts is None:
        return Solution(None, ridge, np.inf)
    return Solution(parts, ridge, validate.error(written_product(problem, parts)))


def written_product(problem: Problem, parts: Parts) -> Array:
    """What parts stand for once they are stored, (groups, in, out) in the metric of the target."""
    dtype = numpy_dtype(problem.weight.dtype)
    stored = {part: values.astype(dtype).astype(problem.target.W.dtype) for part, values in parts.items()}
    return problem.target.in_metric(problem.form.approximate(stored))


def is_usable(regression: Regression) -> bool:
    """Whether there are rows, all groups have inputs that aren't all 0, and nothing overflowed."""
    parts = (regression.gram, regression.cross, regression.energy)
    finite = all(np.isfinite(part).all() for part in parts)
    return regression.rows > 0 and finite and all(float(np.trace(gram)) > 0.0 for gram in regression.gram)


def can_judge(rows: JudgedRows) -> bool:
    """Whether there are rows, all groups have inputs that aren't all 0, and nothing overflowed."""
    finite = bool(np.isfinite(rows.inputs).all() and np.isfinite(rows.targets).all())
    return rows.rows > 0 and finite and all(bool(inputs.any()) for inputs in rows.inputs)


def _descend(error: Callable[[int], float], start: int, count: int) -> int:
    """The place of a local minimum, by steps from `start`."""
    here = start
    for step in (1, -1):
        while 0 <= here + step < count and error(here + step) < error(here):
            here += step
        if here != start:
            break
    return here


def part_solver(problem: Problem, fit: Regression) -> Callable[[float], Parts | None]:
    """From a ridge to the best parts for it."""
    groups = zip(fit.gram, fit.cross, fit.energy, strict=True)
    equations = [Equations(gram, cross, float(energy.sum())) for gram, cross, energy in groups]
    solver = refined_parts(problem, equations)
    scales = [float(np.trace(gram)) / len(gram) for gram in fit.gram]
    return lambda ridge: solver([ridge * scale for scale in scales])
