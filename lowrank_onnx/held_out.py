"""What compression does to samples that its factors were not made of, where there are too few to spare any.

The factors of each fold (`lowrank_onnx.folds`) are made of all other samples, and tried on its own: one weight at a
time, which tells the effects that a plan adds up, and whole plans, which tells the best of several.

Errors count by their geometric mean over the samples. Of eight samples a single hard one would decide otherwise, and
which one is hard differs from draw to draw: on the shipped VGG plans are nearly in the order of their errors on 250
other images by it, and not by the error of all eight together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx

from lowrank_onnx.cache import NO_CACHE, Cache, Slot
from lowrank_onnx.cache.codecs import sensitivity_codec
from lowrank_onnx.cache.facts import feed_facts
from lowrank_onnx.calibration import PROBE_SHARES, approximation, probe_ranks, probe_tail
from lowrank_onnx.chain_factors import LeadingBases, chain_maker
from lowrank_onnx.effort import SensitivityLevel
from lowrank_onnx.evaluate.turns import OpenModel
from lowrank_onnx.factor_families import spool_factors
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.folds import FEWEST_RANKS, Fold, MirroredMoments, OtherMoments
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.moments.shrinkage import ShrunkMoments
from lowrank_onnx.observed import Observed
from lowrank_onnx.progress import Progress, StageProgress
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured, fit_importance
from lowrank_onnx.sensitivity.measure import count_runs, measure_sensitivity
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Curves, WeightRef
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What was learnt of each weight from samples that its factors had not seen.

    Attributes
    ----------
    folds : the parts of the samples.
    unweighted : the weights that are better off with factors that know nothing of their inputs.
    effects : on the outputs, of each weight that is factorized; the tail energies are what its factors promise.
    """

    folds: tuple[Fold, ...]
    unweighted: frozenset[WeightRef]
    effects: Mapping[WeightRef, Sensitivity | Unmeasured]
    _made: tuple[FactorSpool, ...]
    _plain: FactorSpool

    def factors(self, fold: int, weight: WeightRef) -> FactorSpool:
        """Where the factors of a weight are that the samples of a fold took no part in."""
        return self._plain if weight in self.unweighted else self._made[fold]

    def sensitivities(
        self, groups: Sequence[SharedWeight], curves: Sequence[Curves]
    ) -> dict[WeightRef, Sensitivity | Unmeasured]:
        """The effects as those of the tail energies that a plan goes by."""
        known = {group.weight: errors for group, errors in zip(groups, curves, strict=True) if errors}
        return {
            group.weight: _at_tails(self.effects[group.weight], partial(probe_tail, known, group))
            for group in groups
            if group.weight in self.effects and group.weight in known
        }


def measure_held_out(
    model: Model,
    groups: Sequence[SharedWeight],
    ranks: Sequence[Mapping[str, int]],
    observed: Observed,
    folds: Sequence[Fold],
    validated: Mapping[WeightRef, Validated],
    options: FactorizeOptions,
    level: SensitivityLevel,
    directory: Path,
    progress: Progress,
    cache: Cache = NO_CACHE,
    measured: Cache = NO_CACHE,
    decode: Callable[[WeightRef], Array] | None = None,
) -> HeldOut:
    """Factorize for each fold, and once without regard to the inputs, and measure the effect of each weight alone.

    Parameters
    ----------
    model, groups, ranks, options : as for `spool_factors`.
    observed : the original, which runs.
    folds : at least two.
    validated : how far to pull the moments, and which weights may do without them.
    level : "full" measures at more ranks.
    directory : for the factors.
    cache : for factors.
    measured, decode : the cache and what decodes weights, as for `lowrank_onnx.calibration.weight_sensitivities`.
    """
    shares = {weight: found.share for weight, found in validated.items()}

    def spooled(name: str, moments: Mapping[WeightRef, Moment]) -> tuple[FactorSpool, tuple[Curves, ...]]:
        place = directory / name
        place.mkdir()
        bases, whitening = LeadingBases(place), ShrunkMoments(moments, shares)
        spool = FactorSpool(place, chain_maker(model, groups, whitening, options.device, bases, sweeps=0))
        mirrored = ShrunkMoments(MirroredMoments(moments))
        known = spool_factors(model, groups, ranks, spool, options, whitening, progress, cache, bases, mirrored)
        return spool, known

    plain, curves = spooled("unweighted", {})
    made = tuple(spooled(f"fold.{number}", OtherMoments(folds, number))[0] for number in range(len(folds)))
    known = {group.weight: errors for group, errors in zip(groups, curves, strict=True) if errors}
    factorized = [group for group in groups if group.weight in known]
    ranks_of = partial(probe_ranks, known, FEWEST_RANKS if level == "fast" else len(PROBE_SHARES))
    optional = [weight for weight, share in shares.items() if weight in known and share < 1.0]
    tried = [len(fold.tried) for fold in folds]
    together = measured.scoped(lambda: chain((options, shares, ranks, level, tried), feed_facts(observed.calibration)))
    run = _opened_once(observed.run)
    with progress.stage("measuring sensitivity", 2 * sum(tried) * count_runs(factorized, ranks_of, 1, 1)) as stage:
        trial = _Trial(model.skeleton, factorized, folds, known, ranks_of, run, decode, stage)
        every = [group.weight for group in factorized]
        weighted = trial.effects(made, every, lambda weight: together.slot("effect", lambda: ("weighted", weight)))
        without = trial.effects(
            (plain,) * len(folds), optional, lambda weight: together.slot("effect", lambda: ("unweighted", weight))
        )
    unweighted = frozenset(weight for weight in optional if not _does_less_harm(weighted[weight], without[weight]))
    effects = {weight: without[weight] if weight in unweighted else found for weight, found in weighted.items()}
    return HeldOut(tuple(folds), unweighted, effects, made, plain)


def typical(errors: Sequence[float]) -> float:
    """The geometric mean; the arithmetic one where some sample has no error at all, as answers may."""
    if not all(map(math.isfinite, errors)):
        return math.inf
    return math.exp(float(np.mean(np.log(errors)))) if min(errors) > 0.0 else float(np.mean(errors))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Measures effects of single weights with different factors, in one session."""

    skeleton: onnx.ModelProto
    groups: Sequence[SharedWeight]
    folds: Sequence[Fold]
    curves: Mapping[WeightRef, Curves]
    ranks_of: Callable[[SharedWeight], Sequence[int]]
    run: Callable[[onnx.ModelProto], OpenModel]
    decode: Callable[[WeightRef], Array] | None
    stage: StageProgress

    def effects(
        self, made: Sequence[FactorSpool], wanted: Sequence[WeightRef], slot_of: Callable[[WeightRef], Slot]
    ) -> dict[WeightRef, Sensitivity | Unmeasured]:
        """Of the factors of each fold on its samples, for some weights; what a slot has isn't measured again."""
        kept = {weight: slot_of(weight).get(sensitivity_codec(weight)) for weight in wanted}
        found = {weight: effect for weight, effect in kept.items() if effect is not None}
        missing = [weight for weight in wanted if weight not in found]
        if not missing:
            self.stage.advance(
                sum(len(fold.tried) for fold in self.folds) * count_runs(self.groups, self.ranks_of, 1, 1)
            )
            return found
        for weight, effect in self._measured(made, missing).items():
            slot_of(weight).put(sensitivity_codec(weight), effect)
            found[weight] = effect
        return found

    def _measured(
        self, made: Sequence[FactorSpool], wanted: Sequence[WeightRef]
    ) -> dict[WeightRef, Sensitivity | Unmeasured]:
        others = (group.weight for group in self.groups if group.weight not in wanted)
        skipped: dict[WeightRef, Sensitivity | Unmeasured] = {weight: Unmeasured(weight, "") for weight in others}
        by_feed = [
            measure_sensitivity(
                self.skeleton,
                self.groups,
                self.run,
                (feed,),
                partial(approximation, spool, self.curves),
                partial(probe_tail, self.curves),
                self.ranks_of,
                max_feeds=1,
                decode=self.decode,
                known=skipped,
                progress=self.stage,
            )
            for fold, spool in zip(self.folds, made, strict=True)
            for feed in fold.tried
        ]
        together = {found[0].weight: _together(found) for found in zip(*by_feed, strict=True)}
        return {weight: together[weight] for weight in wanted}


def _opened_once(run: Callable[[onnx.ModelProto], OpenModel]) -> Callable[[onnx.ModelProto], OpenModel]:
    """The session of the first model that is asked for, again and again: they are copies."""
    opened: list[OpenModel] = []

    def once(skeleton: onnx.ModelProto) -> OpenModel:
        if not opened:
            opened.append(run(skeleton))
        return opened[0]

    return once


def _together(by_feed: Sequence[Sensitivity | Unmeasured]) -> Sensitivity | Unmeasured:
    """What was measured of one weight on each feed."""
    found = [one for one in by_feed if isinstance(one, Sensitivity)]
    if len(found) < len(by_feed):
        return next(one for one in by_feed if isinstance(one, Unmeasured))
    errors = tuple(typical(at_rank) for at_rank in zip(*(one.output_errors for one in found), strict=True))
    problem = next((one.problem for one in found if one.problem), "")
    importance, fits = fit_importance(found[0].tail_energies, errors)
    return replace(found[0], output_errors=errors, importance=importance, fits=fits, problem=problem)


def _does_less_harm(weighted: Sensitivity | Unmeasured, without: Sensitivity | Unmeasured) -> bool:
    """Whether factors that know the inputs do less harm than those that don't, at all ranks together.

    True where nothing can be told.
    """
    if isinstance(weighted, Unmeasured) or isinstance(without, Unmeasured):
        return True
    pairs = list(zip(weighted.output_errors, without.output_errors, strict=True))
    if not all(0.0 < error < math.inf for pair in pairs for error in pair):
        return typical(weighted.output_errors) <= typical(without.output_errors)
    return typical([error / other for error, other in pairs]) < 1.0


def _at_tails(effect: Sensitivity | Unmeasured, tail_of: Callable[[int], float]) -> Sensitivity | Unmeasured:
    if isinstance(effect, Unmeasured):
        return effect
    tails = tuple(tail_of(rank) for rank in effect.ranks)
    importance, fits = fit_importance(tails, effect.output_errors)
    return replace(effect, tail_energies=tails, importance=importance, fits=fits)
