"""What the feeds teach before anything is planned, as far as the options ask for it: inputs, effects, judges."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from lowrank_onnx.attempt import Workshop, plan_judge
from lowrank_onnx.cache import Cache
from lowrank_onnx.cache.facts import comparison_facts
from lowrank_onnx.calibration import weight_moments, weight_sensitivities
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.config import Config, PlannedBudget
from lowrank_onnx.few_samples import believed, validate_moments, without_moments
from lowrank_onnx.folds import Fold, fold_feeds, samples_to_try
from lowrank_onnx.held_out import HeldOut, measure_held_out
from lowrank_onnx.held_out_judge import HeldOutPlanError
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.observed import Observed
from lowrank_onnx.preparation import Prepared, factor_ranks, factorize_options
from lowrank_onnx.progress import Progress
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.trust import PlanJudge
from lowrank_onnx.types import Curves, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the weights' inputs look like.

    Attributes
    ----------
    moments : over all samples that are learnt from, or the reason why a weight's factors know nothing of them.
    folds : the samples in parts, where they are few, or some weights saw fewer rows than they have features.
    validated : what the parts say of the moments.
    """

    moments: Mapping[WeightRef, Moment | str]
    folds: tuple[Fold, ...] = ()
    validated: Mapping[WeightRef, Validated] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def known(self) -> dict[WeightRef, Moment]:
        """The moments that factors go by."""
        return {weight: moment for weight, moment in self.moments.items() if isinstance(moment, Moment)}

    @property
    def shares(self) -> dict[WeightRef, float]:
        """How far to pull the moments that were validated."""
        return {weight: found.share for weight, found in self.validated.items()}

    def without(self, model: Model, groups: Sequence[SharedWeight], unweighted: Container[WeightRef]) -> Inputs:
        """The same where some weights' factors are to know nothing of them."""
        validated = without_moments(model, groups, self.folds, self.validated, unweighted)
        return Inputs(believed(self.moments, validated), self.folds, validated)


def learn_inputs(
    prepared: Prepared, observed: Observed | None, config: Config, directory: Path, progress: Progress, cache: Cache
) -> Inputs:
    """Observe the weights' inputs on real feeds; synthetic ones say nothing about them.

    `cache` is for results that depend on this model and how it is run.
    """
    if observed is None or observed.feeds.synthetic or not config.whiten or config.allow_larger:
        return Inputs({})
    model, groups, feeds = prepared.model, prepared.groups, observed.calibration
    moments = weight_moments(
        model.skeleton,
        groups,
        observed.run,
        feeds,
        seed=config.seed,
        directory=directory,
        progress=progress,
        cache=cache,
        seen=observed.sites,
    )
    folds = fold_feeds(
        model,
        groups,
        observed.run,
        observed.session.inputs,
        feeds,
        seed=config.seed,
        directory=directory,
        progress=progress,
        cache=cache,
        tried=samples_to_try(groups, observed.positions, feeds) if _plans_by_effects(observed, config) else 0,
        moments=moments,
    )
    validated = validate_moments(model, groups, moments, feeds, folds, seed=config.seed, cache=cache)
    return Inputs(believed(moments, validated), folds, validated)


def _plans_by_effects(observed: Observed | None, config: Config) -> bool:
    """Whether a plan over all weights is to be made, by what compressing each one does on real feeds."""
    return (
        observed is not None
        and not observed.feeds.synthetic
        and isinstance(config.budget, PlannedBudget)
        and config.preset.sensitivity != "off"
    )


def learn_held_out(
    prepared: Prepared,
    observed: Observed | None,
    inputs: Inputs,
    weights: Sequence[PlannedWeight],
    config: Config,
    directory: Path,
    progress: Progress,
    factors: Cache,
    cache: Cache,
) -> tuple[HeldOut | None, Inputs]:
    """Where samples are few, the effects on others than those that factors are made of, and what that says of inputs.

    `factors` is the cache for these, `cache` for results that depend on this model and how it is run.
    """
    if observed is None or not any(fold.tried for fold in inputs.folds) or not _plans_by_effects(observed, config):
        return None, inputs
    held_out = measure_held_out(
        prepared.model,
        prepared.groups,
        [factor_ranks(weight, config) for weight in weights],
        observed,
        inputs.folds,
        inputs.validated,
        factorize_options(config),
        config.preset.sensitivity,
        directory,
        progress,
        factors,
        cache.scoped(partial(comparison_facts, observed.session)),
        WeightReader(prepared.model, (group.weight for group in prepared.groups)).read,
    )
    return held_out, inputs.without(prepared.model, prepared.groups, held_out.unweighted)


def learn_effects(
    prepared: Prepared,
    observed: Observed | None,
    held_out: HeldOut | None,
    curves: Sequence[Curves],
    spool: FactorSpool,
    config: Config,
    progress: Progress,
    cache: Cache,
) -> dict[WeightRef, Sensitivity | Unmeasured]:
    """What compressing each weight alone does, where a plan over all weights is to be made.

    `cache` is for results that depend on this model and how it is run.
    """
    if held_out is not None:
        return held_out.sensitivities(prepared.groups, curves)
    if observed is None or not _plans_by_effects(observed, config):
        return {}
    return weight_sensitivities(
        prepared.model.skeleton,
        prepared.groups,
        curves,
        spool,
        observed.run,
        observed.calibration,
        config.preset.sensitivity,
        progress,
        cache.scoped(partial(comparison_facts, observed.session)),
        WeightReader(prepared.model, (group.weight for group in prepared.groups)).read,
    )


def find_plan_judge(workshop: Workshop, held_out: HeldOut | None) -> PlanJudge:
    """What plans are judged by: where samples are few, by those that the factors of a plan were not made of."""
    if held_out is not None:
        reader = WeightReader(workshop.model, (group.weight for group in workshop.groups))
        error_of = HeldOutPlanError(
            workshop.model.skeleton,
            workshop.groups,
            workshop.original,
            held_out,
            workshop.directory,
            reader.read,
        )
        if error_of.affordable:
            return PlanJudge(error_of)
    return plan_judge(workshop)
