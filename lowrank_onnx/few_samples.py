"""What few samples are good for: each weight's second moment is held against samples that it was not made of."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np

from lowrank_onnx.cache import NO_CACHE, Cache
from lowrank_onnx.cache.codecs import validated_codec
from lowrank_onnx.cache.facts import feed_facts
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.folds import Fold, known_in_all
from lowrank_onnx.forms import PAIR
from lowrank_onnx.linalg.lapack import Problem, solver_of_small
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated, validate_shrinkage
from lowrank_onnx.moments.shrinkage import shrinkage
from lowrank_onnx.types import Curves, ErrorCurve, Spectrum, Tails, WeightRef, rearrange
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight

ON_ONE_THREAD = 0
"""The work of validating a weight, as `solver_of_small` wants it: many eigenproblems of its smaller side, which gain
little from more threads, so that weights go side by side whatever their size."""

NOTHING_LEFT = "on samples held out, factors that know nothing of its inputs do less harm"
"""Why a weight isn't whitened although its inputs were seen."""

RANKS = 16
"""At which errors are compared, evenly spread up to the largest that saves anything."""


def validate_moments(
    model: Model,
    groups: Sequence[SharedWeight],
    moments: Mapping[WeightRef, Moment | str],
    feeds: Feeds,
    folds: Sequence[Fold],
    *,
    seed: int,
    cache: Cache = NO_CACHE,
) -> dict[WeightRef, Validated]:
    """What held-out samples say of the weights' moments; empty where there are no folds.

    `moments` are of all `feeds`; `cache` is for results that depend on this model and how it is run.
    """
    if not folds:
        return {}
    shown = [fold.shown for fold in folds]
    groups = [group for group in groups if known_in_all(shown, group.weight) is not None]
    weights = [group.weight for group in groups]
    slot = cache.slot("validated", lambda: chain((seed, [group.sites for group in groups]), feed_facts(feeds)))
    known = slot.get(validated_codec(weights))
    if known is not None:
        return known
    with solver_of_small(wanted=True) as solve:
        found = dict(solve(_problems(model, groups, moments, folds)))
    validated = {weight: result for weight, result in found.items() if result is not None}
    slot.put(validated_codec(weights), validated)
    return validated


def without_moments(
    model: Model,
    groups: Sequence[SharedWeight],
    folds: Sequence[Fold],
    validated: Mapping[WeightRef, Validated],
    unweighted: Container[WeightRef],
) -> dict[WeightRef, Validated]:
    """What held-out samples say where the factors of some weights know nothing of their inputs."""
    weights = WeightReader(model, (group.weight for group in groups))
    shown = [fold.shown for fold in folds]
    found = dict(validated)
    for group in groups:
        parts = known_in_all(shown, group.weight)
        if group.weight in unweighted and parts is not None:
            matrices = rearrange(weights.read(group.weight), group.sites[0].to_matrices)
            result = validate_shrinkage(matrices, parts, 1.0, _ranks(group))
            if result is not None:
                found[group.weight] = result
    return found


def believed(
    moments: Mapping[WeightRef, Moment | str], validated: Mapping[WeightRef, Validated]
) -> dict[WeightRef, Moment | str]:
    """The moments that say something; for those of which nothing would be left, the reason why they don't count."""
    return {
        weight: NOTHING_LEFT if weight in validated and validated[weight].share == 1.0 else moment
        for weight, moment in moments.items()
    }


def _problems(
    model: Model,
    groups: Sequence[SharedWeight],
    moments: Mapping[WeightRef, Moment | str],
    folds: Sequence[Fold],
) -> Iterator[Problem[WeightRef, Validated | None]]:
    """One for each weight whose inputs are known in all parts."""
    weights = WeightReader(model, (group.weight for group in groups))
    shown, held_out = [fold.shown for fold in folds], sum(fold.held_out for fold in folds)
    for group in groups:
        whole, parts = moments[group.weight], known_in_all(shown, group.weight)
        if not isinstance(whole, Moment) or whole.diagonal or whole.mirrored or parts is None:
            continue
        least = min(shrinkage(matrix, whole.rows) for matrix in whole.second_moment)
        matrices = rearrange(weights.read(group.weight), group.sites[0].to_matrices)
        yield group.weight, partial(validate_shrinkage, matrices, parts, least, _ranks(group), held_out), ON_ONE_THREAD


def honest_curves(curves: Curves, validated: Validated | None) -> Curves:
    """The errors by rank to expect on other samples than those that the factors were made from."""
    return curves if validated is None else {family: _honest(curve, validated) for family, curve in curves.items()}


def _honest(curve: ErrorCurve, validated: Validated) -> ErrorCurve:
    if isinstance(curve, Tails):
        return Tails(curve.ranks, tuple(validated.honest(error) for error in curve.errors))
    captured = np.cumsum(np.sum(np.square(curve.values, dtype=np.float64), axis=0))
    if not curve.energy > 0.0:
        return curve
    tails = [validated.honest(max(0.0, 1.0 - part / curve.energy)) for part in captured]
    steps = np.clip(-np.diff([1.0, *tails]), 0.0, None)
    return Spectrum(np.sqrt(steps * curve.energy)[None], curve.energy)


def _ranks(group: SharedWeight) -> tuple[int, ...]:
    largest = PAIR.largest_useful_rank(group.shape)
    return tuple(sorted({max(1, round(largest * step / RANKS)) for step in range(1, RANKS + 1)})) if largest else ()
