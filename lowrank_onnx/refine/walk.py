"""One walk through the model: a step's equations from both models as they are when its turn comes, solved, and on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments.gather_rows import RowsError, count_rows, gather_rows
from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.moments.row_layout import RowLayout
from lowrank_onnx.moments.row_sampling import LEAST_SAMPLED_ROWS, sample_rows
from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.refine.activations import SIDES
from lowrank_onnx.refine.kept import KeptSteps
from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.regression import Evidence, RegressionSum, RowList, RowSink
from lowrank_onnx.refine.solve import FIRST_RIDGE, can_judge, is_usable, solve_weight, written_product
from lowrank_onnx.refine.steps import Step
from lowrank_onnx.refine.target import Target, find_target
from lowrank_onnx.refine.twins import Twins
from lowrank_onnx.refine.unit import Unit, find_units
from lowrank_onnx.refine.write_form import Problem
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.types import Array

ROWS_PER_FEATURE = (8, 32)
"""Rows that go into the equations of one step, for each input feature: where there are as many, the first number; and
up to the second as long as adding them up takes at most `WORK_SHARE` of the work of the sites themselves."""

JUDGED_ROWS = 2048
"""Rows of the feeds that validate: they choose between a few pulls."""

WORK_SHARE = 1
"""On the shipped VGG with 512 or 2,048 images, four times as many rows take 1 to 2 % of the error on unseen ones."""


RUN, EQUATIONS, SOLVE = "refine: run the models", "refine: equations", "refine: solve"
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


def walk_steps(work: Work, twins: Twins, steps: Iterable[Step], stage: StageProgress) -> tuple[Outcome, ...]:
    """Solve step after step, put the new factors into the spool, and say what became of each weight."""
    outcomes: list[Outcome] = []
    start = FIRST_RIDGE
    for number, step in enumerate(steps):
        weights = [member.replaced for member in step.members]
        found = work.kept.recall(number, weights, work.spool)
        if found is None:
            with work.clock.stage(RUN):
                twins.run_to(step.cut)
            found = _solve_step(work, twins, step, start)
            work.kept.store(number, weights, found, work.spool)
        else:
            twins.run_later(step.cut)
        outcomes += found
        start = outcomes[-1].ridge or start
        stage.advance(len(step.members), detail=step.members[0].replaced.weight.name)
    return tuple(outcomes)


def _solve_step(work: Work, twins: Twins, step: Step, start: float) -> list[Outcome]:
    weights = [member.replaced.weight for member in step.members]
    targets = [find_target(work.model, work.flow, member) for member in step.members]
    carried = targets[0].carried
    if not twins.differ(step.value) and not (carried is not None and twins.differ(carried)):
        return [Outcome(weight, None, "its inputs are the original's") for weight in weights]
    try:
        with work.clock.stage(EQUATIONS):
            evidence = _evidence(work, twins, step, targets)
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
    if not is_usable(evidence.fit) or not can_judge(evidence.validate):
        return Outcome(weight, None, "its inputs on these feeds are all 0, or too large to square", residual=residual)
    before = unit.stored(work.spool)
    problem = Problem(weight, unit.target, before, work.options)
    error_before = evidence.validate.error(written_product(problem, unit.parts(work.spool)))
    found = solve_weight(problem, evidence, start)
    if found.parts is None:
        reason = f"the {before.form.name} form can't hold what was solved"
        return Outcome(weight, None, reason, residual=residual)
    unit.put(work.spool, found.parts, f"{before.solver.removesuffix(REFINED)}{REFINED}")
    return Outcome(weight, found.ridge, "", error_before, found.error, evidence.whole.rows, residual)


REFINED = ", refined"
"""What is added to the name of the solver of the first factors."""


def _evidence(work: Work, twins: Twins, step: Step, targets: Sequence[Target]) -> Evidence:
    """The equations of the feeds that don't validate, rows of those that do, and the equations of all."""
    weights = np.concatenate([target.W for target in targets], axis=-1)
    validating = [feed for feed in twins.feeds if work.validates(feed)]
    fitting = [feed for feed in twins.feeds if not work.validates(feed)]
    shape = twins.value(twins.feeds[0], "original", step.value).shape
    positions = count_rows(step.layout, shape) * len(twins.feeds)
    wanted = _wanted_rows(weights.shape[-2], weights.shape[-1], positions)
    with gram_threads() as executor:
        total, rows = RegressionSum(weights, executor), RowList(weights)
        sums = (total, -(-wanted // len(twins.feeds)))
        for feed in fitting:
            _add_feed(work, twins, step, targets[0], feed, (sums,), executor)
        fit = total.so_far()
        for feed in validating:
            _add_feed(work, twins, step, targets[0], feed, (sums, (rows, -(-JUDGED_ROWS // len(validating)))), executor)
        return Evidence(fit, rows.finish(), total.so_far())


def _wanted_rows(in_features: int, out_features: int, positions: int) -> int:
    """Rows of all feeds. Adding up n rows takes n in**2 multiplications, the sites positions in out."""
    least, most = (number * in_features for number in ROWS_PER_FEATURE)
    return max(least, LEAST_SAMPLED_ROWS, min(most, WORK_SHARE * positions * out_features // in_features))


def _add_feed(
    work: Work,
    twins: Twins,
    step: Step,
    target: Target,
    feed: int,
    sinks: Iterable[tuple[RowSink, int]],
    executor: Executor,
) -> None:
    """Give each of the sinks so many rows of a feed."""
    both = [twins.value(feed, side, step.value) for side in SIDES]
    X, inputs = both
    if X.shape != inputs.shape:
        raise RowsError(f"has shape {list(X.shape)} in the original and {list(inputs.shape)} in the compressed model")
    count = count_rows(step.layout, X.shape)
    offset = _carried_difference(twins, target, feed, count)
    dtype = np.float64 if target.W.dtype == np.float64 else np.float32
    for sink, quota in sinks:
        indices = sample_rows(count, quota, _row_seed(work.options.seed, step, feed))
        start = 0
        while start < len(indices):
            chunk = indices[start : start + sink.room]
            rows, refined_rows = executor.map(partial(gather_rows, step.layout, indices=chunk, dtype=dtype), both)
            differences = None
            if offset is not None and target.layout is not None:
                differences = gather_rows(target.layout, offset, chunk, dtype)
            if not np.isfinite(rows).all() or not np.isfinite(refined_rows).all():
                raise RowsError("holds NaN or infinity on some feeds")
            sink.add(rows, refined_rows, differences)
            start += len(chunk)


def _carried_difference(twins: Twins, target: Target, feed: int, rows: int) -> Array | None:
    """R - R', with a row for each row of the input."""
    if target.carried is None or target.layout is None or not twins.differ(target.carried):
        return None
    original, compressed = (twins.value(feed, side, target.carried) for side in SIDES)
    if original.shape != compressed.shape or count_rows(target.layout, original.shape) != rows:
        raise RowsError(f"doesn't go with the term {target.carried!r} of shape {list(original.shape)}")
    difference: Array = original - compressed
    return difference


def _row_seed(seed: int, step: Step, feed: int) -> int:
    layout: RowLayout = step.layout
    text = f"{seed}\0{step.value}\0{layout!r}\0{feed}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
