"""Who decides what stays of a walk: the outputs of the whole model, feed by feed, against the original's.

With many samples the error of all held-out feeds together decides. Of a few samples one may decide alone, and does: on
the shipped ViT with 32 images, new factors halved the error on 8 held-out ones by what they gained on a single one,
while most others lost. So a gain on few samples has to stand clear of its own standard error over the feeds, which what
comes from one feed alone never does, and a typical feed has to gain as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lowrank_onnx.attempt import Workshop, held_attempt, open_attempt
from lowrank_onnx.evaluate import Feeds, Runner
from lowrank_onnx.evaluate.accumulate import OutputComparison
from lowrank_onnx.evaluate.feeds import split_feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.in_order import in_order
from lowrank_onnx.model_io import Model
from lowrank_onnx.refine.side_by_side import side_by_side
from lowrank_onnx.types import overall_error

FEW_SAMPLES = 64
"""With fewer held-out samples, a gain has to be certain."""

STANDARD_ERRORS = 1.05
"""By which the mean gain of a feed has to exceed 0. One feed that gains alone gains just one standard error."""

LEAST_GAIN = 0.005
"""Of the error, below which a gain on the feeds that judge says nothing of others: on the shipped VGG at 0.6 of the
parameters new factors gained a tenth of a percent on 128 images, and lost 10 % on 2,000 others."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model's outputs lose against the original's.

    Attributes
    ----------
    error : relative, on the held-out feeds together.
    squares : the squares of the relative errors on each of them alone.
    """

    error: float
    squares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judges:
    """Feeds which neither the planned factors nor the walk have seen, where there are such."""

    feeds: Feeds

    def prefer(self, after: Judgement, before: Judgement) -> bool:
        """Whether the model judged `after` is better: always on all feeds together, and with few samples for sure."""
        certain = self.feeds.samples >= FEW_SAMPLES or _is_certain(before.squares, after.squares)
        return after.error < (1.0 - LEAST_GAIN) * before.error and certain


def judge(workshop: Workshop, candidates: Iterable[Model], expected: KeptOutputs) -> list[Judgement]:
    """Run models that are made of the workshop's factors, and compare each with the original.

    Parameters
    ----------
    candidates : each is asked for when the one before it has its factors, which may then be replaced.
    """
    expected.prepare()
    at_once, threads = side_by_side(workshop.original)
    with ThreadPoolExecutor(at_once, "judges") as executor:
        jobs = (_judging(workshop, candidate, threads, expected) for candidate in candidates)
        return list(in_order(executor, jobs, at_once - 1))


def _judging(
    workshop: Workshop, candidate: Model, threads: int | None, expected: KeptOutputs
) -> Callable[[], Judgement]:
    """What judges a model with the factors as they are now; a model that isn't held in memory is judged at once."""
    original = workshop.original.session
    start = held_attempt(workshop, candidate, threads)
    if start is not None:
        return lambda: _judge(original, start(), expected)
    with open_attempt(workshop, candidate) as model:
        found = _judge(original, model, expected)
    return lambda: found


def _judge(original: Runner, model: Runner, expected: KeptOutputs) -> Judgement:
    together = OutputComparison(original)
    squares = []
    for _, wanted, actual in expected.pair_with(model):
        alone = OutputComparison(original)
        for comparison in (alone, together):
            comparison.add(wanted, actual)
        squares.append(overall_error(alone.statistics()) ** 2)
    return Judgement(overall_error(together.statistics()), tuple(squares))


def find_judges(calibration: Feeds, held_out: Feeds, every: int) -> Judges:
    """The held-out feeds; where there are too few to hold any out, those that the walk doesn't solve for.

    Parameters
    ----------
    calibration, held_out : the same where none is held out.
    every : one calibration feed in so many is not solved for.
    """
    return Judges(split_feeds(calibration, every)[1] if held_out is calibration else held_out)


def _is_certain(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the gain exceeds its standard error over the feeds, and the geometric mean of their errors falls."""
    if not all(map(math.isfinite, after)):
        return False
    known = [(old, new) for old, new in zip(before, after, strict=True) if math.isfinite(old)]
    if len(known) < 2:
        return True  # one feed has no spread
    old, new = np.array(known).T
    gains, least = old - new, np.finfo(np.float64).tiny
    clear = gains.mean() > STANDARD_ERRORS * gains.std(ddof=1) / math.sqrt(len(gains))
    return bool(clear and np.mean(np.log(np.maximum(new, least) / np.maximum(old, least))) < 0.0)
