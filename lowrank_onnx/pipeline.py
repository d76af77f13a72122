"""The only place where the stages are composed.

    load -> find sites -> absorb -> observe -> candidates -> plan -> factorize -> refine -> rewrite -> validate

`compress` runs them all, `inspect` stops after the candidates, `validate` runs the last one alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from lowrank_onnx.absorb import absorbable_notes, credited
from lowrank_onnx.accounting import Bookkeeping
from lowrank_onnx.attempt import Workshop, settled_choices
from lowrank_onnx.cache import open_cache
from lowrank_onnx.cache.facts import environment_facts, model_facts
from lowrank_onnx.calibration import lessons
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.chain_factors import LeadingBases, chain_maker
from lowrank_onnx.config import Config, PlannedBudget
from lowrank_onnx.errors import MissingDependencyError, ModelError, UsageError
from lowrank_onnx.evaluate.logits import find_logits
from lowrank_onnx.evaluate.turns import plan_sessions
from lowrank_onnx.factor_families import spool_factors
from lowrank_onnx.few_samples import honest_curves
from lowrank_onnx.finish import finish
from lowrank_onnx.folds import MirroredMoments
from lowrank_onnx.inspection import inspect_weights, with_plans
from lowrank_onnx.judging import compare, metric_judge
from lowrank_onnx.learning import find_plan_judge, learn_effects, learn_held_out, learn_inputs
from lowrank_onnx.linalg.lapack import beside_runtime
from lowrank_onnx.model_io import (
    ModelSource,
    check_target,
    load_model,
    scratch_directory,
)
from lowrank_onnx.model_totals import totals
from lowrank_onnx.moments.shrinkage import ShrunkMoments
from lowrank_onnx.no_sites import why_no_sites
from lowrank_onnx.observed import FeedSource, Observed, find_feeds, open_model
from lowrank_onnx.preparation import (
    factor_ranks,
    factorize_options,
    observe_if_needed,
    planned_weights,
    prepare,
    run_original,
)
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.prospect import plain, plan_shares, prospect
from lowrank_onnx.realise import Realiser
from lowrank_onnx.reorder import OutputOrders
from lowrank_onnx.results import CompressionResult, InspectResult
from lowrank_onnx.revision import Reviser
from lowrank_onnx.settle import Settled, check_feasible, models_searched
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.time_weights import time_weights
from lowrank_onnx.types import Verdict
from lowrank_onnx.weight_reader import read_biases

DEFAULTS = Config()


def compress(
    model: ModelSource,
    config: Config = DEFAULTS,
    *,
    feeds: FeedSource | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    cache: str | os.PathLike[str] | None = None,
    base_directory: Path | None = None,
    progress: Progress = SILENT,
) -> CompressionResult:
    """Compress a model, prove what that did, and write the result if it holds.

    Parameters
    ----------
    model : a path, a `ModelProto`, a `gs.Graph` or an `onnx_ir.Model`. It is never modified.
    config : budget, method, gates; see `Config`.
    feeds : inputs that observe, search, validate and time: a `.npz`, a directory of `.npz` or of
        ``test_data_set_*``, or an iterable of dicts. None makes synthetic ones.
    output : where to write. None writes nothing; the new model is in ``result.model``.
    force : overwrite an existing output.
    cache : a directory for moments, factors, sensitivities and the steps of refinement, by content: a run that was
        killed goes on, and later ones with other budgets start from them. What doesn't depend on timing is the same
        with and without. None keeps nothing.
    base_directory : where the external data of a `ModelProto` or `gs.Graph` lies; an `onnx_ir.Model` knows it.
    progress : receives the stages.

    Returns
    -------
    CompressionResult
        ``status`` is "written", "rejected" (a gate failed or it is not faster; nothing was written) or "unchanged" (no
        weight could be replaced; nothing was written).

    Raises
    ------
    UsageError, OutputError, MissingDependencyError
        An option, a feed or the output is not usable as given.
    ModelError, FactorizationError
        The model can't be read, run or factorized.
    """
    asked, clock = config, StageClock()
    kept = open_cache(None if cache is None else Path(cache), partial(environment_facts, config.device))
    with ExitStack() as stack:
        stack.enter_context(beside_runtime())
        with clock.stage("load"):
            prepared = prepare(model, config, base_directory)
        on_model = kept.scoped(partial(model_facts, prepared.model, config.runs_on))
        target = None if output is None else Path(output)
        if target is not None:
            check_target(prepared.model, target, force=force)
        directory = stack.enter_context(scratch_directory(target))
        with clock.stage("observe"):
            observed = observe_if_needed(prepared, config, feeds, directory)
            positions = observed.positions if observed else {}
            config = replace(config, budget=credited(asked.budget, prepared.groups, prepared.saved, positions))
            unmeasured = planned_weights(prepared, observed, {})
            check_feasible(unmeasured, config)
            metric = None if observed is None else metric_judge(observed.session, config, models_searched(config))
            inputs = learn_inputs(prepared, observed, config, directory, progress, on_model)
        with clock.stage("measure sensitivity" if inputs.folds else "observe"):
            held_out, inputs = learn_held_out(
                prepared, observed, inputs, unmeasured, config, directory, progress, kept, on_model
            )
            if observed is not None:
                observed.rest()
        whitening = ShrunkMoments(inputs.known, inputs.shares)
        bases = LeadingBases(directory)
        chains = partial(chain_maker, prepared.model, prepared.groups, whitening, config.device, bases)
        spool = FactorSpool(directory, chains())
        with clock.stage("factorize"):
            ranks = [factor_ranks(weight, config) for weight in unmeasured]
            promised = spool_factors(
                prepared.model,
                prepared.groups,
                ranks,
                spool,
                factorize_options(config),
                whitening,
                progress,
                kept,
                bases,
                ShrunkMoments(MirroredMoments(inputs.known)),
            )
            curves = [
                honest_curves(known, inputs.validated.get(group.weight))
                for group, known in zip(prepared.groups, promised, strict=True)
            ]
        with clock.stage("measure sensitivity"):
            sensitivities = learn_effects(prepared, observed, held_out, curves, spool, config, progress, on_model)
        weights = planned_weights(prepared, observed, sensitivities)
        refs = {weight.name: group.weight for weight, group in zip(weights, prepared.groups, strict=True)}
        by_name = {weight.name: known for weight, known in zip(weights, curves, strict=True)}
        orders = OutputOrders(prepared.model.skeleton, prepared.groups)
        biases = read_biases(prepared.model, prepared.groups)
        realiser = Realiser(spool, refs, by_name, whitening, config.seed, orders.may_change, biases)
        workshop = Workshop(prepared.model, prepared.groups, spool, directory, observed, metric, prepared.expansion)
        drafts = replace(workshop, spool=spool.drafts(chains(sweeps=0)))
        judge_of_plans = find_plan_judge(drafts, held_out) if sensitivities else None

        planned = isinstance(config.budget, PlannedBudget) and config.objective == "latency" and config.validate

        @functools.cache
        def timed_weights() -> tuple[PlannedWeight, ...]:
            with clock.stage("time weights"):
                return time_weights(workshop, weights, config, kept, progress)

        def settled(config: Config, start: float | None = None) -> Settled:
            chosen_from = timed_weights() if planned else weights
            with clock.stage("plan"):
                return settled_choices(workshop, chosen_from, realiser, config, start, judge_of_plans, progress)

        choices, search = settled(config)
        book = Bookkeeping(
            source=prepared.source,
            model=prepared.original,
            absorbed=prepared.absorbed,
            groups=prepared.groups,
            skipped=prepared.skipped,
            lessons=lessons(prepared.groups, curves, inputs.moments, sensitivities),
            positions=positions,
            feeds=observed.feeds if observed else None,
            weights=timed_weights() if planned else weights,
            asked=prepared.asked,
            choices=choices,
            search=search,
            config=asked,
            clock=clock,
            notes=(*prepared.notes, *kept.notes),
            trials=() if judge_of_plans is None else judge_of_plans.trials,
        )
        if all(choice.candidate.rank is None for choice in choices) and not prepared.absorbed:
            return book.unchanged()
        reviser = Reviser(config, timed_weights, lambda speedup, start: settled(replace(config, budget=speedup), start))
        return finish(book, workshop, reviser, target, on_model, force=force, progress=progress)


def validate(
    original: ModelSource,
    candidate: ModelSource,
    config: Config = DEFAULTS,
    *,
    feeds: FeedSource | None = None,
    progress: Progress = SILENT,
) -> Verdict:
    """Compare two models in onnxruntime: outputs on the feeds, and interleaved latency.

    Parameters
    ----------
    original, candidate : paths, protos or graphs. Neither is modified.
    config : its gates, logits, metric, provider, seed and `one_session` are used.
    feeds : as in `compress`.
    progress : receives the stages.

    Returns
    -------
    Verdict
        Passed only if something was compared, no output is unsound and every gate holds. Speed is reported, not judged.
    """
    first, second = load_model(original), load_model(candidate)
    logits = find_logits(first.skeleton, config.logits)
    room = first.file_bytes + second.file_bytes
    sessions = plan_sessions(config.one_session, room, config.runs_on, logits=logits)
    session = sessions.open(partial(open_model, first, config.runs_on))
    chosen = find_feeds(first, session, feeds, config.seed)
    metric = metric_judge(session, config)
    rival = sessions.open(partial(open_model, second, config.runs_on))
    try:
        return compare(session, rival, chosen, config, progress, metric=metric, note=sessions.note)
    finally:
        sessions.rest()


def inspect(
    model: ModelSource,
    config: Config = DEFAULTS,
    *,
    feeds: FeedSource | None = None,
    base_directory: Path | None = None,
    progress: Progress = SILENT,
) -> InspectResult:
    """Every weight that can be factorized and every node that can't, with sizes, MACs and spectra.

    Parameters
    ----------
    model, feeds, base_directory, progress : as in `compress`.
    config : its filters, method and seed are used.

    Returns
    -------
    InspectResult
        MACs are of one run on one feed; where the model could not be run, they are None and a note says why.
    """
    prepared = prepare(model, config, base_directory, absorb=False)
    positions: Mapping[str, int] = {}
    notes: list[str] = []
    observed: Observed | None = None
    try:
        observed = run_original(prepared, config, feeds)
    except (ModelError, UsageError, MissingDependencyError) as error:
        if feeds is not None:
            raise
        notes.append(f"MACs are not known: {error}")
    else:
        positions = observed.positions
        observed.rest()
        notes.append(f"MACs are of one run on the first of {observed.feeds.description}")
    options, groups = factorize_options(config), prepared.groups
    sites, curves = inspect_weights(prepared.model, groups, positions, options, prepared.asked, progress)
    weights = plain(planned_weights(prepared, observed, {}))
    plans = plan_shares(weights, {weight.name: known for weight, known in zip(weights, curves, strict=True)})
    size = totals(prepared.original.skeleton, prepared.original.file_bytes, groups, None, positions)
    shares = tuple(plan for plan, _ in plans)
    return InspectResult(
        input=prepared.source,
        sites=with_plans(sites, groups, plans),
        skipped=prepared.skipped,
        totals=size,
        notes=(*prepared.notes, *notes, *absorbable_notes(prepared.model, prepared.sites)),
        plans=shares,
        message=prospect(weights, shares, size, why_no_sites(prepared.original.skeleton, prepared.skipped)),
    )
