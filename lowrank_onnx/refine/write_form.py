"""The only part of refinement that depends on the form: parts for a regression at a rank.

A pair is solved in closed form, and a pivoted form is a pair written anew. Whatever else stands for a matrix A is
fitted by its own means: with M the solution of full rank and ``H = X'X + l I`` of the regression, its loss at A is
``tr (A - M)' H (A - M)`` and a constant, which is the problem of fitting the weight M to inputs of second moment H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.chain_factors import ChainWeight, chain_parts
from lowrank_onnx.factorize import FactorizeOptions, weight_seed
from lowrank_onnx.forms import ConvChain, Form, Pivoted
from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.linalg.request import checked_options
from lowrank_onnx.linalg.ridge import PulledRegression
from lowrank_onnx.refine.target import Target
from lowrank_onnx.types import Array, Rearrangement, WeightRef

TOLERANCE = 1.02
"""How near to optimal the solver "auto" has to be, as in the factorize stage."""

Parts = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Problem:
    """One weight to be solved again.

    Attributes
    ----------
    weight : which; part of the seed and of messages.
    target : what it should compute; its W is the original.
    form : as it is written, the pivots of a pivoted form included.
    rank : r.
    options : how to factorize.
    """

    weight: WeightRef
    target: Target
    form: Form
    rank: int
    options: FactorizeOptions


def refined_parts(problem: Problem, regressions: Sequence[PulledRegression], pulls: Sequence[float]) -> Parts | None:
    """The parts that solve the regression of each group; None where the form can't hold them."""
    if isinstance(problem.form, ConvChain):
        return _chain(problem, problem.form, regressions, pulls)
    left, right = _pair(problem, regressions, pulls)
    if not isinstance(problem.form, Pivoted):
        return {"left": left, "right": right}
    found = pivot_factors(left[0], right[0], problem.form.start)
    if found is None:
        return None
    parts = {"left": found.left, "before": found.before, "after": found.after}
    return {part: values[None].astype(left.dtype) for part, values in parts.items() if values.shape[1]}


def _pair(problem: Problem, regressions: Sequence[PulledRegression], pulls: Sequence[float]) -> tuple[Array, Array]:
    options = problem.options
    factors = []
    for number, (regression, pull) in enumerate(zip(regressions, pulls, strict=True)):
        seed = weight_seed(problem.weight, options.seed, number)
        settings = checked_options(options.method, options.power_iterations, options.oversampling, TOLERANCE, seed)
        factors.append(regression.solve(pull, problem.rank, settings))
    left, right = np.stack([left for left, _ in factors]), np.stack([right for _, right in factors])
    return left, problem.target.out_of_metric(right)


def _chain(problem: Problem, form: ConvChain, regressions: Sequence[PulledRegression], pulls: Sequence[float]) -> Parts:
    solved = [regression.solve_full(pull) for regression, pull in zip(regressions, pulls, strict=True)]
    dtype = problem.target.W.dtype
    matrices = problem.target.out_of_metric(np.stack([solution for solution, _ in solved])).astype(dtype)
    kernel = ChainWeight(
        weight=problem.weight,
        stored=matrices,
        to_matrices=Rearrangement(matrices.shape, (0, 1, 2), matrices.shape),
        second_moment=np.stack([moment for _, moment in solved]),
        device=problem.options.device,
    )
    return chain_parts(kernel, form, problem.rank)
