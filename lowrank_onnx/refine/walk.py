"""One walk through the model: a step's equations from both models as they are when its turn comes, solved, and on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.in_order import in_order
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments.gather_rows import RowsError, count_rows, gather_rows
from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.refine.kept import KeptSteps
from lowrank_onnx.refine.models import Models
from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.regression import Evidence, Regression, RegressionSum, RowList, Summand
from lowrank_onnx.refine.solve import FIRST_RIDGE, can_judge, is_usable, solve_weight, written_factors
from lowrank_onnx.refine.steps import Step
from lowrank_onnx.refine.target import Target, find_target
from lowrank_onnx.refine.unit import Unit, find_units
from lowrank_onnx.refine.write_form import Problem
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.types import Array

GATHERED_BYTES, PARTS_AHEAD = 2**23, 4
"""Of rows that a thread lays out at once, and how often that is done before they are added up."""

ORIGINAL, COMPRESSED, EQUATIONS, SOLVE, JUDGE = (
    f"refine: {part}" for part in ("run the original", "run the compressed model", "equations", "solve", "judge")
)
"""Parts of the stage whose time is counted."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a walk works with.

    Attributes
    ----------
    model, flow : the original.
    spool : the factors, which the walk replaces.
    options : how to factorize.
    validates : whether a feed of that number validates: the pull is chosen by solutions that haven't seen it.
    kept : what an earlier walk of this kind has found.
    clock : counts the time.
    """

    model: Model
    flow: Dataflow
    spool: FactorSpool
    options: FactorizeOptions
    validates: Callable[[int], bool]
    kept: KeptSteps
    clock: StageClock


def walk_steps(work: Work, models: Models, steps: Sequence[Step], stage: StageProgress) -> tuple[Outcome, ...]:
    """Solve step after step, put the new factors into the spool, and say what became of each weight."""
    outcomes: list[Outcome] = []
    start = FIRST_RIDGE
    cuts: list[int] = []
    for number, step in enumerate(steps):
        weights = [member.replaced for member in step.members]
        found = work.kept.recall(number, weights, work.spool)
        if number in models.readings:
            cuts.append(step.cut)  # what was recalled is run to as well, so that pieces are always the same
        if found is None:
            found = _solve_step(work, models, number, step, cuts, start)
            work.kept.store(number, weights, found, work.spool)
        models.ahead.drop(number)
        outcomes += found
        start = outcomes[-1].ridge or start
        stage.advance(len(step.members), detail=step.members[0].replaced.weight.name)
    return tuple(outcomes)


def _solve_step(work: Work, models: Models, number: int, step: Step, cuts: list[int], start: float) -> list[Outcome]:
    weights = [member.replaced.weight for member in step.members]
    if number not in models.readings:
        return [Outcome(weight, None, "its inputs are the original's") for weight in weights]
    with work.clock.stage(ORIGINAL):
        models.ahead.run_to(number)
    with work.clock.stage(COMPRESSED):
        while cuts:
            models.compressed.run_to(cuts.pop(0))
    try:
        with work.clock.stage(SOLVE):
            targets = [find_target(work.model, work.flow, member) for member in step.members]
        with work.clock.stage(EQUATIONS):
            evidence = _evidence(work, models, number, step, targets)
    except RowsError as error:
        return [Outcome(weight, None, f"its input {step.value!r} {error}") for weight in weights]
    outcomes = []
    for unit in find_units(step.members, targets):
        with work.clock.stage(SOLVE):
            found = _solve(work, unit, evidence.of_columns(unit.columns), start)
        outcomes += [replace(found, weight=one.weight) for one in unit.weights]
    return outcomes


def _solve(work: Work, unit: Unit, evidence: Evidence, start: float) -> Outcome:
    """Put new factors of the weights of a unit into the spool."""
    weight, residual = unit.weights[0].weight, unit.target.carried is not None
    if not is_usable(evidence.fit) or not can_judge(evidence.judge):
        return Outcome(weight, None, "its inputs on these feeds are all 0, or too large to square", residual=residual)
    before = unit.stored(work.spool)
    problem = Problem(weight, unit.target, before, work.options)
    error_before = evidence.judge.error(written_factors(problem, unit.parts(work.spool)))
    found = solve_weight(problem, evidence, start)
    if found.parts is None:
        reason = f"the {before.form.name} form can't hold what was solved"
        return Outcome(weight, None, reason, residual=residual)
    unit.put(work.spool, found.parts, f"{before.solver.removesuffix(REFINED)}{REFINED}")
    return Outcome(weight, found.ridge, "", error_before, found.error, evidence.rows, residual)


REFINED = ", refined"
"""What is added to the name of the solver of the first factors."""


def _evidence(work: Work, models: Models, number: int, step: Step, targets: Sequence[Target]) -> Evidence:
    """The equations of the feeds that don't validate, and of those that do; the latter's rows, where they are few."""
    feeds = models.waiting.feeds
    fitting, validating = ([feed for feed in feeds if work.validates(feed) is judges] for judges in (False, True))
    shape = (*targets[0].W.shape[:2], sum(target.W.shape[-1] for target in targets))
    few = sum(models.ahead.count(number, feed) for feed in validating) < shape[1]
    kept = RowList(shape, targets[0].W.dtype)
    room = max(1, GATHERED_BYTES // (shape[0] * (shape[1] + shape[2]) * targets[0].W.itemsize))
    with gram_threads() as executor:

        def add_up(feeds: Sequence[int], receive: Callable[[Array, Array], None]) -> Regression:
            total = RegressionSum(shape, targets[0].W.dtype, executor)

            def ready(lay_out: Callable[[], Rows]) -> Summand:
                inputs, targets = lay_out()
                summand = total.summand(inputs, targets)
                if not summand.is_finite and not (_is_finite(inputs) and _is_finite(targets)):
                    raise RowsError("holds NaN or infinity on some feeds")
                return summand

            most = min(room, max(1, sum(models.ahead.count(number, feed) for feed in feeds) // PARTS_AHEAD))
            jobs = (partial(ready, part) for part in _parts(_pieces(models, number, step, targets, feeds, most), most))
            for summand in in_order(executor, jobs, PARTS_AHEAD):
                total.add(summand)
                receive(summand.inputs, summand.targets)
            return total.finish()

        fit = add_up(fitting, lambda inputs, targets: None)
        validate = add_up(validating, kept.add if few else lambda inputs, targets: None)
    return Evidence(fit, validate, kept.finish() if few else None)


Rows: TypeAlias = tuple[Array, Array]
"""Rows of X' and T, (groups, n, in) and (groups, n, out)."""


def _parts(pieces: Iterable[tuple[int, Callable[[], Rows]]], most: int) -> Iterator[Callable[[], Rows]]:
    """What lays out several pieces, about `most` rows together."""
    together: list[Callable[[], Rows]] = []
    size = 0
    for rows, lay_out in pieces:
        if size + rows > most and together:
            yield partial(_concatenated, together)
            together, size = [], 0
        together.append(lay_out)
        size += rows
    if together:
        yield partial(_concatenated, together)


def _concatenated(pieces: Sequence[Callable[[], Rows]]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]()
    inputs, targets = zip(*(piece() for piece in pieces), strict=True)
    return np.concatenate(inputs, axis=1), np.concatenate(targets, axis=1)


def _pieces(
    models: Models, number: int, step: Step, targets: Sequence[Target], feeds: Iterable[int], most: int
) -> Iterator[tuple[int, Callable[[], Rows]]]:
    """Of each feed at most `most` rows at a time: how many there are, and what lays them out."""
    readings, dtype = models.readings[number], models.ahead.dtype(number)
    carried = readings.carried if targets[0].carried is not None else None

    def lay_out(inputs: Array, term: Array | None, indices: NDArray[np.int64], kept: Sequence[Array]) -> Rows:
        rows = gather_rows(step.layout, inputs, indices, dtype)
        wanted = readings.multiplied(kept[: len(readings.products)], targets)
        if carried is not None and term is not None:
            wanted = wanted + (kept[-1] - gather_rows(carried.layout, term, indices, dtype))
        return rows, wanted

    for feed in feeds:
        inputs = models.compressed.value(feed, step.value)
        count = count_rows(step.layout, inputs.shape)
        indices, kept = models.ahead.rows(number, feed, count)
        term = None if carried is None else models.compressed.value(feed, carried.name)
        if carried is not None and term is not None and count_rows(carried.layout, term.shape) != count:
            raise RowsError(f"doesn't go with the term {carried.name!r} of shape {list(term.shape)}")
        for start in range(0, len(indices), most):
            place = slice(start, start + most)
            part = indices[place]
            yield len(part), partial(lay_out, inputs, term, part, [one[:, place] for one in kept])


def _is_finite(rows: Array) -> bool:
    """Whether all numbers are finite; they are looked at one by one only where their sum isn't."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(rows)) or np.isfinite(rows).all())
