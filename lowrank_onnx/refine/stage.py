"""The refine stage: what helps on feeds that it didn't see is done again on all of them.

1. One walk through the model solves each weight on most of the calibration feeds. The others decide how hard it is
   pulled towards the original.
2. The outputs of the whole model on those others decide what stays: all of it, else the beginning of the walk that does
   best, else nothing. The rival is the model as planned, but with its factors whitened on the walk's feeds alone: the
   planned factors have seen the others.
3. A second walk solves what stays on all calibration feeds, with the pulls from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from lowrank_onnx.attempt import Workshop, error_on
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate.feeds import Feeds, is_held_out, split_feeds
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.passes.dataflow import Dataflow, read_dataflow
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.refine.replaced import Replaced, replaced_weights
from lowrank_onnx.refine.steps import Steps, plan_steps
from lowrank_onnx.refine.twins import Bounds, Twins, TwinsError
from lowrank_onnx.refine.walk import Outcome, Work, walk_steps
from lowrank_onnx.results import RefinedWeight, Refinement
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import WeightRef

VALIDATE_EVERY = 4
"""One calibration feed in so many validates; one in all where there are fewer."""

BEGINNINGS = (0.75, 0.5, 0.25)
"""Shares of the weights that are tried where the whole walk doesn't help."""

UNDONE = "undone: the model's outputs on held-out feeds were not better with it"

BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Refined:
    """The factors to write, which are the planned ones where nothing helped, and what happened."""

    spool: FactorSpool
    report: Refinement


def refine_factors(
    workshop: Workshop,
    choices: Sequence[Choice],
    options: FactorizeOptions,
    *,
    bounds: Bounds = BOUNDS,
    progress: Progress = SILENT,
) -> Refined:
    """Solve the factors of the choices again, on the inputs that the compressed model has, and keep what helps.

    Parameters
    ----------
    workshop : the model, its planned factors and its feeds, of which only those for calibration are used.
    choices : one for each weight.
    options : how to factorize.
    bounds : of what is kept between the pieces of the models.
    progress : receives one stage for each walk.
    """
    feeds = workshop.original.calibration
    if len(feeds) < 2:
        note = f"{len(feeds)} feed to calibrate with: give at least 2, of which one is held out"
        return Refined(workshop.spool, Refinement(len(feeds), 0, None, None, (), note))
    every = min(VALIDATE_EVERY, len(feeds))
    _, held_out = split_feeds(feeds, every)
    walker = _Walker.of(workshop, choices, options, bounds, progress)
    try:
        first, outcomes, used = walker.walk(lambda feed: is_held_out(feed, every), None)
        kept, before, after = _keep_what_helps(walker, choices, held_out, first, outcomes)
        spool = workshop.spool
        if kept:
            ridges = {o.weight: o.ridge for o in outcomes if o.weight in kept and o.ridge is not None}
            spool = walker.walk(lambda feed: False, ridges)[0].spool
    except TwinsError as error:
        return Refined(workshop.spool, Refinement(0, len(held_out), None, None, (), str(error)))
    undone = (o if o.weight in kept or o.ridge is None else replace(o, ridge=None, reason=UNDONE) for o in outcomes)
    left_out = (Outcome(weight, None, reason) for weight, reason in walker.steps.reasons.items())
    report = Refinement(
        feeds=used,
        held_out=len(held_out),
        error_before=before,
        error_after=after,
        weights=tuple(_reported(outcome) for outcome in (*undone, *left_out)),
        note="" if used == len(feeds) else f"{used} of {len(feeds)} feeds were used: there was no room for more",
    )
    return Refined(spool, report)


@dataclass(frozen=True, slots=True)
class _Walker:
    """What both walks have in common."""

    workshop: Workshop
    flow: Dataflow
    steps: Steps
    replaced: tuple[Replaced, ...]
    options: FactorizeOptions
    bounds: Bounds
    progress: Progress

    @classmethod
    def of(
        cls,
        workshop: Workshop,
        choices: Sequence[Choice],
        options: FactorizeOptions,
        bounds: Bounds,
        progress: Progress,
    ) -> _Walker:
        replaced = replaced_weights(workshop.groups, choices)
        flow = read_dataflow(workshop.model.skeleton)
        steps = plan_steps(flow, replaced)
        return cls(workshop, flow, steps, replaced, options, bounds, progress)

    def walk(
        self, validates: Callable[[int], bool], ridges: Mapping[WeightRef, float] | None
    ) -> tuple[Work, tuple[Outcome, ...], int]:
        """Solve again from the planned factors; with the new ones, what became of each weight, and the feeds used."""
        workshop, steps = self.workshop, self.steps
        spool, rivals = workshop.spool.branch(), workshop.spool.branch()
        work = Work(workshop.model, self.flow, spool, rivals, self.options, validates, ridges)
        name = "refining factors" if ridges is None else "refining factors on all feeds"
        with self.progress.stage(name, sum(len(step.members) for step in steps.steps)) as stage:
            feeds = workshop.original.calibration
            with closing(Twins(workshop, self.flow, steps.order, self.replaced, spool, feeds, self.bounds)) as twins:
                outcomes = walk_steps(work, twins, steps.steps, stage)
                return work, outcomes, len(twins.feeds)

    def adopt(self, work: Work, weights: Iterable[WeightRef]) -> FactorSpool:
        """The rivals of a walk's new factors, but for some weights the new ones."""
        spool, wanted = work.rivals.branch(), set(weights)
        for one in self.replaced:
            if one.weight in wanted:
                spool.adopt(one.factors(work.spool), one.weight)
        return spool


def _keep_what_helps(
    walker: _Walker, choices: Sequence[Choice], feeds: Feeds, work: Work, walked: Sequence[Outcome]
) -> tuple[frozenset[WeightRef], float, float]:
    """The weights whose new factors stay, and the outputs' error on `feeds` before and after."""
    changed = [outcome.weight for outcome in walked if outcome.ridge is not None]

    def error_with(weights: Sequence[WeightRef]) -> float:
        return error_on(replace(walker.workshop, spool=walker.adopt(work, weights)), choices, feeds)

    before = error_with(())
    best: tuple[float, Sequence[WeightRef]] = (before, ())
    for share in (1.0, *BEGINNINGS):
        beginning = changed[: round(share * len(changed))]
        if beginning and (error := error_with(beginning)) < best[0]:
            best = (error, beginning)
            if share == 1.0:
                break
    return frozenset(best[1]), before, best[0]


def _reported(outcome: Outcome) -> RefinedWeight:
    return RefinedWeight(
        weight=outcome.weight.name,
        refined=outcome.ridge is not None,
        reason=outcome.reason,
        target="sum" if outcome.residual else "output",
        pull=outcome.ridge,
        error_before=outcome.error_before,
        error_after=outcome.error_after,
        rows=outcome.rows,
    )
