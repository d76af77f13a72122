"""The refine stage: new factors stay as far as they help on feeds that they weren't solved on.

1. One walk through the model solves each weight: on most of the calibration feeds, while the others decide how hard it
   is pulled towards the original, and then on all of them.
2. The outputs of the whole model on the held-out feeds, which neither the planned factors nor the walk have seen,
   decide what stays (`lowrank_onnx.refine.judges`): all of it, else the beginning of the walk that does best, else
   nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

from lowrank_onnx.attempt import Workshop, attempt_model
from lowrank_onnx.cache import NO_CACHE, Cache, remember
from lowrank_onnx.cache.facts import feed_facts
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate.feeds import is_held_out
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.model_io import Model
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.refine.batches import Batches, batch_feeds
from lowrank_onnx.refine.judges import Judges, find_judges, judge
from lowrank_onnx.refine.kept import KeptSteps, Trial, factor_facts, trial_codec
from lowrank_onnx.refine.models import Models, open_models
from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.pieces import Bounds, PiecesError
from lowrank_onnx.refine.replaced import Replaced, replaced_weights
from lowrank_onnx.refine.steps import Steps, plan_steps
from lowrank_onnx.refine.walk import COMPRESSED, JUDGE, Work, walk_steps
from lowrank_onnx.results import RefinedWeight, Refinement
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.types import WeightRef

VALIDATE_EVERY = 4
"""One calibration feed in so many validates; one in all where there are fewer."""

BEGINNINGS = (1.0, 0.6, 0.25)
"""Shares of the weights, from the first on, whose new factors are tried: the others where all of them don't help."""

VERDICT = "validate"
"""The stage of the verdict."""

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
    clock: StageClock | None = None,
    cache: Cache = NO_CACHE,
) -> Refined:
    """Solve the factors of the choices again, on the inputs that the compressed model has, and keep what helps.

    Parameters
    ----------
    workshop : the model, its planned factors and its feeds; those that are held out only decide what stays.
    choices : one for each weight.
    options : how to factorize.
    bounds : of what is kept between the pieces of the models.
    progress : receives one stage.
    clock : counts the time of running the models, and that of the rest.
    cache : for results that depend on this model and how it is run; it gets each step when it is done.
    """
    feeds = workshop.original.calibration
    if len(feeds) < 2:
        note = f"{len(feeds)} feed to calibrate with: give at least 2, of which one is held out"
        return Refined(workshop.spool, Refinement(len(feeds), 0, None, None, (), note))
    every = min(VALIDATE_EVERY, len(feeds))
    together = batch_feeds(feeds, lambda feed: is_held_out(feed, every), workshop.original.session)
    batches = together.batches
    replaced = replaced_weights(workshop.groups, choices)
    flow = read_dataflow(workshop.model.skeleton)
    rows = {name: count * len(feeds) for name, count in workshop.original.positions.items()}
    steps = plan_steps(flow, replaced, [site for group in workshop.groups for site in group.sites], rows)
    walk = cache.scoped(lambda: chain((options, bounds), factor_facts(replaced, workshop.spool), feed_facts(feeds)))
    judges = find_judges(feeds, workshop.original.held_out, every)
    work = Work(
        model=workshop.model,
        flow=flow,
        spool=workshop.spool.branch(),
        options=options,
        validates=lambda batch: batches[batch].validates,
        kept=KeptSteps(walk),
        clock=StageClock() if clock is None else clock,
    )
    workshop.original.rest()
    try:
        with (
            progress.stage("refining factors", sum(len(step.members) for step in steps.steps)) as stage,
            closing(_open_models(work, workshop, steps, replaced, together, bounds)) as models,
        ):
            outcomes = walk_steps(work, models, steps.steps, stage)
            room = len(models.waiting.feeds)
    except PiecesError as error:
        return Refined(workshop.spool, Refinement(0, 0, None, None, (), str(error)))
    with work.clock.stage(JUDGE):
        trial = remember(
            work.kept.trial(judges.feeds, workshop.original.session),
            trial_codec(len(replaced)),
            lambda: _keep_what_helps(work, workshop, choices, judges, outcomes, replaced),
        )
    stays = [replaced[place] for place in trial.kept]
    spool, kept = _adopt(workshop.spool, work.spool, stays), {one.weight for one in stays}
    undone = (o if o.weight in kept or o.ridge is None else replace(o, ridge=None, reason=UNDONE) for o in outcomes)
    used = sum(len(batch.members) for batch in batches[:room])
    left_out = (Outcome(weight, None, reason) for weight, reason in steps.reasons.items())
    report = Refinement(
        feeds=used,
        held_out=len(judges.feeds),
        error_before=trial.error_before,
        error_after=trial.error_after,
        weights=tuple(_reported(outcome) for outcome in (*undone, *left_out)),
        note="" if used == len(feeds) else f"{used} of {len(feeds)} feeds were used: there was no room for more",
    )
    return Refined(spool, report)


def _open_models(
    work: Work, workshop: Workshop, steps: Steps, replaced: Sequence[Replaced], feeds: Batches, bounds: Bounds
) -> Models:
    with work.clock.stage(COMPRESSED):
        return open_models(workshop, work.flow, steps, replaced, work.spool, feeds, bounds, work.options.seed)


def _keep_what_helps(
    work: Work,
    workshop: Workshop,
    choices: Sequence[Choice],
    judges: Judges,
    walked: Sequence[Outcome],
    replaced: Sequence[Replaced],
) -> Trial:
    """The weights whose new factors stay, and the outputs' errors on the held-out feeds before and after."""
    weights = {one.weight: one for one in replaced}
    changed = [outcome.weight for outcome in walked if outcome.ridge is not None]
    expected = _expected(work, workshop, judges)
    tried = replace(workshop, spool=workshop.spool.branch())
    candidate = attempt_model(tried, choices)  # its graph is the same with all factors

    def with_beginning(beginning: frozenset[WeightRef]) -> Model:
        for weight in changed:
            one = weights[weight]
            tried.spool.adopt(one.factors(work.spool if weight in beginning else workshop.spool), weight)
        return candidate

    shares = (changed[: round(share * len(changed))] for share in BEGINNINGS)
    found = dict.fromkeys(frozenset(_whole_bundles(share, weights)) for share in shares)
    beginnings = [beginning for beginning in found if beginning]
    kept: frozenset[WeightRef] = frozenset()
    before, *judged = judge(tried, map(with_beginning, [kept, *beginnings[:1]]), expected)
    if judged and not judges.prefer(judged[0], before):
        judged += judge(tried, map(with_beginning, beginnings[1:]), expected)
    after = before
    for beginning, judgement in zip(beginnings, judged, strict=False):  # the others only where all of it doesn't help
        if judgement.error < after.error and judges.prefer(judgement, before):
            kept, after = beginning, judgement
    places = tuple(place for place, one in enumerate(replaced) if one.weight in kept)
    return Trial(places, before.error, after.error)


def _expected(work: Work, workshop: Workshop, judges: Judges) -> KeptOutputs:
    """What the original returns on the feeds that judge; where the verdict needs it too, its time is that stage's."""
    original = workshop.original
    if judges.feeds is not original.held_out:
        return KeptOutputs(original.session, judges.feeds, workshop.directory)
    with work.clock.stage(VERDICT):
        original.expected.prepare()
    return original.expected


def _whole_bundles(beginning: Sequence[WeightRef], weights: Mapping[WeightRef, Replaced]) -> Sequence[WeightRef]:
    """Without weights that share a first factor with one that isn't there."""
    there = Counter(weights[weight].form.bundle for weight in beginning)
    forms = [weights[weight].form for weight in beginning]
    return [
        weight
        for weight, form in zip(beginning, forms, strict=True)
        if form.bundle is None or there[form.bundle] == form.bundle_size
    ]


def _adopt(spool: FactorSpool, solved: FactorSpool, weights: Iterable[Replaced]) -> FactorSpool:
    """The factors of a spool, but for some weights those of another."""
    branch = spool.branch()
    for one in weights:
        branch.adopt(one.factors(solved), one.weight)
    return branch


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
