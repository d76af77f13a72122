"""One walk through the model: a step's equations from both models as they are when its turn comes, solved, and on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments.gather_rows import RowsError
from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.refine.evidence import find_evidence
from lowrank_onnx.refine.kept import KeptSteps
from lowrank_onnx.refine.known import Evidence
from lowrank_onnx.refine.models import Models
from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.solve import FIRST_RIDGE, solve_weight, written_factors
from lowrank_onnx.refine.steps import Step
from lowrank_onnx.refine.target import find_target
from lowrank_onnx.refine.unit import Unit, find_units
from lowrank_onnx.refine.write_form import Problem
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock

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
            evidence = find_evidence(models, number, step, targets, work.validates)
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
    if not evidence.fit.is_usable or not evidence.judge.is_usable:
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
