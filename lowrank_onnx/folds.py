"""Few samples in parts: each part judges what all the others teach.

What is measured on the very samples that factors were made from is too good by far where these are few: as many
directions as there were rows seem to cost nothing. So factors are made of all parts but one, and held against that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType

from lowrank_onnx.cache import NO_CACHE, Cache
from lowrank_onnx.calibration import RunModel, weight_moments
from lowrank_onnx.errors import ModelError
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.evaluate.folds import fold_samples, single_samples
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.factor_families import work_of
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments import Moment, keep_moment, merge_moments, without_rows
from lowrank_onnx.moments.cross_validation import LARGEST_SIDE, PULLS
from lowrank_onnx.progress import Progress
from lowrank_onnx.types import Feed, WeightRef
from lowrank_onnx.weights import SharedWeight, total_positions

ENOUGH_SAMPLES = 128
"""From so many samples on they are taken together, and moments are pulled only as far as their rows ask for; but for
weights that saw fewer rows than they have features, of which parts still tell how far.

Of those of plans without folds, plans with folds leave, at 0.8 to 0.4 of the parameters, from 32 images 0.54 to 0.97 of
the error (two draws, the shipped VGG) and 0.53 to 1.03 (the ViT), from 64 0.53 to 0.82 and 0.65 to 1.19, refined and on
other images. From 384 they leave the VGG 0.97 and the ViT 1.07 (one draw, at 0.6), and take three times as long."""

ENOUGH_FOR_MOMENTS = 16
"""The same where no effects are measured, and folds only tell how far to pull."""

PARTS = 4
"""Of the samples; each is held out once, or the first `TOLD_BY` are."""

TOLD_BY = 2
"""Parts that are held out where only moments are looked at: all others are what is left of the whole."""

MOST_TRIED = 4
"""Samples of each part that factors are tried on, at the most."""

MOST_MACS = 2e12
"""Multiplications of the sites' weights that trying each weight alone may take, by two kinds of factors at
`FEWEST_RANKS`: some 20 s on two cores. MiniLM-L6 with 8 sentences takes 1.2e12, the shipped ViT 1.6e11; a text detector
on whole pages would take 1.5e13, and is learnt from without folds: it has rows enough in few samples."""

EIGENPROBLEM = 10
"""Multiplications of a symmetric eigenproblem with vectors, in cubes of its side: about what LAPACK's take."""

FEWEST_RANKS = 2
"""At which each weight's effect is measured: one tells little of what a few samples promise at others."""


def samples_to_try(groups: Sequence[SharedWeight], positions: Mapping[str, int], feeds: Feeds) -> int:
    """How many samples of each part there is time to try each weight on; 0 where folds would take too long."""
    applied = ((total_positions(group.sites, positions) or 0) * group.shape.parameters for group in groups)
    macs = sum(applied) * len(feeds) / max(1, feeds.samples)
    tries = 2 * FEWEST_RANKS * PARTS * len(groups)
    return min(MOST_TRIED, int(MOST_MACS / max(1.0, tries * macs)))


@dataclass(frozen=True, slots=True)
class Fold:
    """A part of the samples.

    Attributes
    ----------
    tried : some samples of it, which factors that all others make are tried on.
    shown : what the inputs of each weight look like on it, or the reason why that isn't known.
    held_out : whether it is, or only learnt from.
    """

    tried: tuple[Feed, ...]
    shown: Mapping[WeightRef, Moment | str]
    held_out: bool = True


def fold_feeds(
    model: Model,
    groups: Sequence[SharedWeight],
    run: RunModel,
    inputs: Sequence[InputSpec],
    feeds: Feeds,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
    cache: Cache = NO_CACHE,
    tried: int,
    moments: Mapping[WeightRef, Moment | str] = MappingProxyType({}),
) -> tuple[Fold, ...]:
    """Part the samples and observe each part; none where there are too few to part.

    `tried` is how many samples of each part are kept to try factors on; with 0 the folds serve the moments alone. Where
    there are samples enough to take them together, only the weights are observed whose `moments`, of all of them, come
    from fewer rows than features (`weights_short_of_rows`); there are no folds where there is no such weight.

    `cache` is for results that depend on this model and how it is run.
    """
    enough = feeds.samples >= (ENOUGH_SAMPLES if tried else ENOUGH_FOR_MOMENTS)
    if enough:
        groups, tried = weights_short_of_rows(groups, moments), 0
    if not groups:
        return ()
    folds = []
    for number, part in enumerate(fold_samples(feeds, inputs, PARTS)[: TOLD_BY if enough else PARTS]):
        place = directory / f"part.{number}"
        place.mkdir()
        try:
            shown = weight_moments(
                model.skeleton, groups, run, part, seed=seed, directory=place, progress=progress, cache=cache
            )
        except ModelError:
            # Its inputs leave the number of samples open, but the model only runs on as many as there were in a feed.
            return ()
        folds.append(Fold(single_samples(part, inputs, tried) if tried else (), shown))
    if enough and folds:
        folds.append(Fold((), _rest(groups, moments, folds, directory / "rest"), held_out=False))
    return tuple(folds)


def _rest(
    groups: Sequence[SharedWeight],
    moments: Mapping[WeightRef, Moment | str],
    folds: Sequence[Fold],
    directory: Path,
) -> dict[WeightRef, Moment | str]:
    """What the samples show that are in none of the folds, from what all of them do; kept in a new directory."""
    directory.mkdir()
    found: dict[WeightRef, Moment | str] = {}
    for number, weight in enumerate(group.weight for group in groups):
        whole, parts = moments[weight], known_in_all([fold.shown for fold in folds], weight)
        if parts is None or isinstance(whole, str) or sum(part.rows for part in parts) >= whole.rows:
            found[weight] = "not known in all parts"
        else:
            found[weight] = keep_moment(without_rows(whole, parts), directory, number)
    return found


def weights_short_of_rows(
    groups: Sequence[SharedWeight], moments: Mapping[WeightRef, Moment | str]
) -> list[SharedWeight]:
    """The weights whose inputs gave fewer rows than they have features, so that some directions were never seen.

    The smallest of them, as far as there is time to validate them (`MOST_MACS`), in the order of `groups`.

    On the shipped VGG, not refined, validating them leaves from 512, 1,024 and 2,048 images .66, .80 and .88 of the
    error at 0.8 of the parameters, and .83, .91 and .93 at 0.6. Up to four times as many rows as features it would
    leave from 4,096 images .95 and .98.
    """
    short = [group for group in groups if _is_short(moments.get(group.weight))]
    short = [group for group in short if group.shape.max_rank <= LARGEST_SIDE]
    ascending = sorted(short, key=lambda group: group.shape.max_rank)
    spent = accumulate(map(_validation_macs, ascending))
    there_is_time = {group.weight for group, macs in zip(ascending, spent, strict=True) if macs <= MOST_MACS}
    return [group for group in short if group.weight in there_is_time]


def _validation_macs(group: SharedWeight) -> int:
    """Eigenproblems of the smaller side for each part and pull, and the products that lead there, of parts and rest."""
    shape = group.shape
    eigenproblems = TOLD_BY * len(PULLS) * shape.groups * EIGENPROBLEM * shape.max_rank**3
    return eigenproblems + (TOLD_BY + 1) * work_of(group)


def _is_short(moment: Moment | str | None) -> bool:
    if not isinstance(moment, Moment) or moment.diagonal or moment.mirrored is not None:
        return False
    return moment.rows < moment.in_features


def known_in_all(parts: Sequence[Mapping[WeightRef, Moment | str]], weight: WeightRef) -> list[Moment] | None:
    """What the weight's inputs look like on each part, or None where some part doesn't tell."""
    shown = [part.get(weight) for part in parts]
    known = [moment for moment in shown if isinstance(moment, Moment)]
    return known if len(known) == len(shown) else None


class OtherMoments(Mapping[WeightRef, Moment]):
    """What the inputs of each weight look like on all parts but one, where all know it; merged when it is asked for.

    Parameters
    ----------
    folds : all parts.
    without : the position of the one that is left out.
    """

    def __init__(self, folds: Sequence[Fold], without: int) -> None:
        self._others = [fold.shown for number, fold in enumerate(folds) if number != without]

    def __getitem__(self, weight: WeightRef) -> Moment:
        moments = known_in_all(self._others, weight)
        if moments is None:
            raise KeyError(weight)
        merged = merge_moments(moments)
        mirrored = [moment.mirrored for moment in moments if moment.mirrored is not None]
        return replace(merged, mirrored=merge_moments(mirrored)) if mirrored else merged

    def __iter__(self) -> Iterator[WeightRef]:
        return (weight for weight in self._others[0] if known_in_all(self._others, weight) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class MirroredMoments(Mapping[WeightRef, Moment]):
    """Of moments those of the rows that transposed uses multiply, where there are such.

    Parameters
    ----------
    moments : of all weights.
    """

    def __init__(self, moments: Mapping[WeightRef, Moment]) -> None:
        self._moments = moments

    def __getitem__(self, weight: WeightRef) -> Moment:
        mirrored = self._moments[weight].mirrored
        if mirrored is None:
            raise KeyError(weight)
        return mirrored

    def __iter__(self) -> Iterator[WeightRef]:
        return (weight for weight in self._moments if self._moments[weight].mirrored is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
