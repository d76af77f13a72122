"""One weight solved again in its form and at its rank, and how hard it is pulled towards what it was."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.forms import ConvChain
from lowrank_onnx.linalg.backend import NUMPY, select_backend
from lowrank_onnx.linalg.lapack import Begin, begin_small
from lowrank_onnx.refine.known import Evidence, KeptRows, Known
from lowrank_onnx.refine.regression import Regression
from lowrank_onnx.refine.write_form import Equations, Parts, Problem, Rows, refined_parts
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
    evidence : usable.
    start : the ridge to try first.

    Returns
    -------
    The error is that of the parts that were solved without the feeds that validate. Should those of all feeds, which
    know these rows, not have less, their equations went wrong: then it is these parts that are returned.
    """
    with begin_small(_work(problem, evidence)) as begin:
        search = _Search(problem, evidence, begin)
        place = search.descend(RIDGES.index(start))
        found = search.tried(place)
        last = found if found.parts is None else search.final(place)
    return replace(found, parts=last.parts) if last.parts is not None and last.error <= found.error else found


class _Search:
    """The ridge of `RIDGES` whose parts, as stored, have least error on the validating rows: a local minimum by steps.

    What is likely to be asked for next is begun beside what is asked for now.
    """

    def __init__(self, problem: Problem, evidence: Evidence, begin: Begin) -> None:
        self._problem, self._evidence, self._begin = problem, evidence, begin
        self._solver = part_solver(problem, evidence.fit)
        self._tried: dict[int, Callable[[], Solution]] = {}
        self._final: dict[int, Callable[[], Solution]] = {}

    def descend(self, start: int) -> int:
        """The place of the best ridge."""
        here = start
        self._begin_try(here)
        if isinstance(self._problem.form, ConvChain):
            self.tried(here)  # the first pull that is asked for settles their leading factor
        for step in (1, -1):
            while 0 <= here + step < len(RIDGES):
                self._begin_try(here + step)
                if here != start or step < 0:
                    self._begin_final(here)
                if not self.tried(here + step).error < self.tried(here).error:
                    break
                here += step
            if here != start:
                break
        return here

    def tried(self, place: int) -> Solution:
        """Parts of the feeds that don't validate."""
        self._begin_try(place)
        return self._tried[place]()

    def final(self, place: int) -> Solution:
        """Parts of all feeds."""
        self._begin_final(place)
        return self._final[place]()

    def _begin_try(self, place: int) -> None:
        if place not in self._tried:
            self._tried[place] = self._begin(partial(self._attempt, lambda: self._solver, RIDGES[place]))

    def _begin_final(self, place: int) -> None:
        if place not in self._final:
            solver = partial(_solver_of_all, self._problem, self._evidence)
            self._final[place] = self._begin(partial(self._attempt, solver, RIDGES[place]))

    def _attempt(self, find_solver: Callable[[], Callable[[float], Parts | None]], ridge: float) -> Solution:
        try:
            parts = find_solver()(ridge)
        except FactorizationError:  # so small a pull doesn't make the equations regular
            parts = None
        if parts is None:
            return Solution(None, ridge, np.inf)
        return Solution(parts, ridge, self._evidence.judge.error(written_factors(self._problem, parts)))


def _solver_of_all(problem: Problem, evidence: Evidence) -> Callable[[float], Parts | None]:
    whole = evidence.whole()
    return part_solver(problem, whole) if whole.is_usable else lambda ridge: None


def _work(problem: Problem, evidence: Evidence) -> int:
    """About m n r of a solution on the host: the Cholesky factor of the equations, or the products of few rows."""
    if select_backend(problem.options.device) is not NUMPY:
        return sys.maxsize
    in_features, out_features = (int(size) for size in problem.target.W.shape[1:])
    return evidence.rows * in_features * out_features if isinstance(evidence.fit, KeptRows) else in_features**3 // 3


def written_factors(problem: Problem, parts: Parts) -> tuple[Array, ...]:
    """What parts stand for once they are stored, as matrices whose product it is, in the metric of the target."""
    dtype = numpy_dtype(problem.weight.dtype)
    stored = {part: values.astype(dtype).astype(problem.target.W.dtype) for part, values in parts.items()}
    *others, last = problem.form.factors(stored)
    return (*others, problem.target.in_metric(last))


def part_solver(problem: Problem, known: Known) -> Callable[[float], Parts | None]:
    """From a ridge to the best parts for it."""
    solver = refined_parts(problem, _groups(known))
    scales = known.scales
    return lambda ridge: solver([ridge * scale for scale in scales])


def _groups(known: Known) -> list[Equations | Rows]:
    if isinstance(known, Regression):
        groups = zip(known.gram, known.cross, known.energy, strict=True)
        return [Equations(gram, cross, float(energy.sum())) for gram, cross, energy in groups]
    unit = known.inputs.dtype.type(1.0 / math.sqrt(known.rows))
    return [Rows(unit * X, unit * T) for X, T in zip(known.inputs, known.targets, strict=True)]
