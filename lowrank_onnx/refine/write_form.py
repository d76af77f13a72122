"""The only part of refinement that depends on the form: parts for a regression at a rank.

A pair is solved in closed form, and a pivoted form is a pair written anew. A chain of convolutions begins with the
leading factor that the weight has, improved once, at the first pull that is asked for: what follows it then has a
closed form at every pull.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.chain_factors import SWEEPS, family_parts, leading_axes
from lowrank_onnx.factorize import FactorizeOptions, weight_seed
from lowrank_onnx.forms import ConvChain, Form, Pivoted
from lowrank_onnx.linalg.backend import DeviceName
from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.linalg.pulled_leading import PulledLeading, pulled_leading
from lowrank_onnx.linalg.request import checked_options
from lowrank_onnx.linalg.ridge import PulledRegression, pulled_regression
from lowrank_onnx.linalg.ridge_rows import PulledRows, pulled_rows
from lowrank_onnx.refine.target import Target
from lowrank_onnx.spool import StoredFactors
from lowrank_onnx.types import Array, MatrixShape, WeightRef, numpy_dtype

TOLERANCE = 1.02
"""How near to optimal the solver "auto" has to be, as in the factorize stage."""

Parts = dict[str, Array]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """One weight to be solved again.

    Attributes
    ----------
    weight : which; part of the seed and of messages.
    target : what it should compute; its W is the original.
    before : the factors that it has: their form, the pivots of a pivoted form included, and their rank stay.
    options : how to factorize.
    """

    weight: WeightRef
    target: Target
    before: StoredFactors
    options: FactorizeOptions

    @property
    def form(self) -> Form:
        """As it is written."""
        return self.before.form

    @property
    def rank(self) -> int:
        """Of the factors."""
        return self.before.rank


@dataclass(frozen=True, slots=True, eq=False)
class Equations:
    """The normal equations of one group: ``X'X`` (in, in), ``X'T`` (in, out) and ``||T||_F**2``."""

    gram: Doubles
    cross: Doubles
    energy: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Few rows of one group: X (n, in) and T (n, out), in the units of means over all of them."""

    inputs: Array
    targets: Array


Solver = Callable[[Sequence[float]], Parts | None]
"""From a pull for each group to the parts that solve its regression; None where the form can't hold them."""


def refined_parts(problem: Problem, groups: Sequence[Equations | Rows]) -> Solver:
    """The parts that solve the regressions of all groups.

    Parameters
    ----------
    problem, groups : the weight, and its equations; or its rows, where its form `takes_rows`.
    """
    if isinstance(problem.form, ConvChain):
        return _chain_solver(problem, problem.form, [one for one in groups if isinstance(one, Equations)])
    pulled = [_pulled(one, W, problem.options.device) for one, W in zip(groups, problem.target.W, strict=True)]
    return lambda pulls: _matrix_parts(problem, pulled, pulls)


def _pulled(one: Equations | Rows, W: Array, device: DeviceName) -> PulledRegression | PulledRows:
    if isinstance(one, Rows):
        return pulled_rows(one.inputs, one.targets, W, device)
    return pulled_regression(one.gram, one.cross, W, device)


def _matrix_parts(
    problem: Problem, regressions: Sequence[PulledRegression | PulledRows], pulls: Sequence[float]
) -> Parts | None:
    left, right = _pair(problem, regressions, pulls)
    if not isinstance(problem.form, Pivoted):
        return {"left": left, "right": right}
    found = pivot_factors(left[0], problem.form.ordered(right[0]), problem.form.start)
    if found is None:
        return None
    parts = {"left": found.left, "before": found.before, "after": found.after}
    return _stored(parts, left.dtype, numpy_dtype(problem.weight.dtype))


def _stored(parts: Mapping[str, NDArray[np.float64]], dtype: np.dtype[Any], stored: np.dtype[Any]) -> Parts | None:
    """Parts that aren't empty as one group of `dtype`; None where they exceed it or what the model stores them in.

    Pivots that are nearly dependent make others of any size.
    """
    held = {part: values for part, values in parts.items() if values.shape[1]}
    largest = max(float(np.abs(values).max()) for values in held.values())
    if largest > min(float(ml_dtypes.finfo(kind).max) for kind in (dtype, stored)):  # type: ignore[no-untyped-call]
        return None
    return {part: values[None].astype(dtype) for part, values in held.items()}


def _pair(
    problem: Problem, regressions: Sequence[PulledRegression | PulledRows], pulls: Sequence[float]
) -> tuple[Array, Array]:
    options = problem.options
    factors = []
    for number, (regression, pull) in enumerate(zip(regressions, pulls, strict=True)):
        seed = weight_seed(problem.weight, options.seed, number)
        settings = checked_options(options.method, options.power_iterations, options.oversampling, TOLERANCE, seed)
        factors.append(regression.solve(pull, problem.rank, settings))
    left, right = np.stack([left for left, _ in factors]), np.stack([right for _, right in factors])
    return left, problem.target.out_of_metric(right)


def _chain_solver(problem: Problem, form: ConvChain, groups: Sequence[Equations]) -> Solver:
    W = problem.target.W
    shape, geometry = MatrixShape(*W.shape), form.geometry
    kernels = W.reshape(shape.groups, geometry.channels, *geometry.kernel, shape.out_features)
    whole = [
        pulled_leading(one.gram, one.cross, kernel, one.energy, leading_axes(form), problem.options.device)
        for one, kernel in zip(groups, kernels, strict=True)
    ]
    name, *_, last = form.part_names
    firsts = [one.orthonormal(first) for one, first in zip(whole, problem.before.values(name), strict=True)]
    behind: list[PulledLeading] = []

    def solve(pulls: Sequence[float]) -> Parts:
        if not behind:
            fits = [one.family(pull, first) for one, pull, first in zip(whole, pulls, firsts, strict=True)]
            swept = family_parts(fits, form, shape, problem.rank, sweeps=SWEEPS)[name]
            firsts[:] = [one.orthonormal(first) for one, first in zip(whole, swept, strict=True)]
            behind.extend(one.behind(first) for one, first in zip(whole, firsts, strict=True))
            whole.clear()  # the large matrices
        fits = [one.family(pull) for one, pull in zip(behind, pulls, strict=True)]
        parts = family_parts(fits, form, shape, problem.rank, sweeps=0)
        outer = np.stack([one.backend.to_host(first) for one, first in zip(behind, firsts, strict=True)])
        return {**parts, name: (outer @ parts[name]).astype(W.dtype), last: problem.target.out_of_metric(parts[last])}

    return solve
