"""The refine stage: a sweep on part of the calibration feeds, kept as far as it helps the model on the others.

Each weight's pull, and whether it changes at all, is decided by the error of its own target on feeds that the sweep
does not fit. Whether the sweep stays is decided by the outputs of the whole model on those feeds: all of it, else the
beginning of it that does best, else nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowrank_onnx.attempt import Workshop, error_on
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate.feeds import Feeds, is_held_out, split_feeds
from lowrank_onnx.factorize import FactorizeOptions, FactorSpool
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.refine.steps import plan_steps
from lowrank_onnx.refine.sweep import Outcome, Work, sweep
from lowrank_onnx.refine.twins import Bounds, Twins, TwinsError
from lowrank_onnx.types import WeightRef

VALIDATE_EVERY = 4
"""One calibration feed in so many validates; one in all where there are fewer."""

BOUNDS = Bounds()

PREFIXES = (0.75, 0.5, 0.25)
"""Shares of the steps that are tried where the whole sweep doesn't help."""


@dataclass(frozen=True, slots=True)
class Refined:
    """The factors after the stage, and what happened.

    Attributes
    ----------
    spool : the factors to write: those of the plan where nothing helped.
    outcomes : what became of each weight that the plan replaced by factors.
    fitted, validated : feeds that were solved for, and feeds that decided.
    error_before, error_after : of the model's outputs on the feeds that decided; None where it didn't come to that.
    note : why nothing was refined, or what was given up; "" where nothing is amiss.
    """

    spool: FactorSpool
    outcomes: tuple[Outcome, ...]
    fitted: int
    validated: int
    error_before: float | None
    error_after: float | None
    note: str = ""


def refine_factors(
    workshop: Workshop,
    choices: Sequence[Choice],
    options: FactorizeOptions,
    *,
    bounds: Bounds = BOUNDS,
    progress: Progress = SILENT,
) -> Refined:
    """Solve the factors of the choices again, and keep what helps.

    Parameters
    ----------
    workshop : the model, its factors and its feeds; the spool of the result is another.
    choices : one for each weight.
    options : how to factorize.
    bounds : of what is kept between the pieces of the models.
    progress : receives one stage.
    """
    observed = workshop.original
    feeds = observed.calibration
    if len(feeds) < 2:
        return _unrefined(workshop, f"there is {len(feeds)} feed to calibrate with, expected at least 2")
    every = min(VALIDATE_EVERY, len(feeds))
    _, validating = split_feeds(feeds, every)
    ranks = {g.weight: c.candidate.rank for g, c in zip(workshop.groups, choices, strict=True) if c.candidate.rank}
    replaced = [group for group in workshop.groups if group.weight in ranks]
    flow = read_dataflow(workshop.model.skeleton)
    planned = plan_steps(flow, replaced)
    work = Work(workshop.model, flow, workshop.spool.branch(), ranks, options, lambda feed: is_held_out(feed, every))
    try:
        with progress.stage("refining factors", sum(len(step.members) for step in planned.steps)) as stage:
            twins = Twins(
                workshop.model,
                observed.provider,
                flow,
                planned.order,
                [(group, ranks[group.weight]) for group in replaced],
                work.spool,
                feeds,
                workshop.directory,
                bounds,
            )
            swept = sweep(work, twins, planned.steps, stage)
    except TwinsError as error:
        return _unrefined(workshop, str(error))
    left_out = tuple(Outcome(weight, None, reason) for weight, reason in planned.reasons.items())
    kept, before, after = _keep_what_helps(workshop, choices, validating, work.spool, swept)
    undone = tuple(o if o.weight in kept or o.ridge is None else replace(o, ridge=None, reason=UNDONE) for o in swept)
    used = twins.feeds
    return Refined(
        spool=_adopt(workshop.spool, work.spool, kept),
        outcomes=(*undone, *left_out),
        fitted=sum(not work.validates(feed) for feed in used),
        validated=len(validating),
        error_before=before,
        error_after=after,
        note="" if len(used) == len(feeds) else f"only {len(used)} of {len(feeds)} feeds were used: {ROOM}",
    )


UNDONE = "undone: it did not lower the error of the model's outputs"
ROOM = "there was no room for the values of more"


def _unrefined(workshop: Workshop, note: str) -> Refined:
    return Refined(workshop.spool, (), 0, 0, None, None, note)


def _keep_what_helps(
    workshop: Workshop, choices: Sequence[Choice], feeds: Feeds, refined: FactorSpool, swept: Sequence[Outcome]
) -> tuple[frozenset[WeightRef], float, float]:
    """The weights whose new factors stay, and the outputs' error on `feeds` before and after."""
    changed = [outcome.weight for outcome in swept if outcome.ridge is not None]

    def error_with(weights: Sequence[WeightRef]) -> float:
        spool = _adopt(workshop.spool, refined, weights)
        return error_on(replace(workshop, spool=spool), choices, feeds)

    before = error_with(())
    if not changed:
        return frozenset(), before, before
    after = error_with(changed)
    if after < before:
        return frozenset(changed), before, after
    best: tuple[float, Sequence[WeightRef]] = (before, ())
    for share in PREFIXES:
        beginning = changed[: round(share * len(changed))]
        error = error_with(beginning) if beginning else before
        if error < best[0]:
            best = (error, beginning)
    return frozenset(best[1]), before, best[0]


def _adopt(
    planned: FactorSpool, refined: FactorSpool, weights: Sequence[WeightRef] | frozenset[WeightRef]
) -> FactorSpool:
    spool = planned.branch()
    for weight in weights:
        spool.adopt(weight, refined)
    return spool
