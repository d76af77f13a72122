"""Who decides what stays of a walk: the outputs of the whole model, feed by feed, against the original's.

With many samples the error of all held-out feeds together decides. Of a few samples one may decide alone, and does: on
the shipped ViT with 32 images, new factors halved the error on 8 held-out ones by what they gained on a single one,
while most others lost. So a gain on few samples has to stand clear of its own standard error over the feeds, which what
comes from one feed alone never does; and the feeds on which the walk chose its pulls join them, though all that they
say is in favour of the new factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lowrank_onnx.attempt import Workshop, attempt
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.evaluate.accumulate import OutputAccumulator
from lowrank_onnx.evaluate.feeds import split_feeds
from lowrank_onnx.evaluate.turns import pair_outputs
from lowrank_onnx.types import Feed, overall_error

FEW_SAMPLES = 64
"""With fewer held-out samples, a gain has to be certain."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model's outputs lose against the original's.

    Attributes
    ----------
    error : relative, on the held-out feeds together.
    squares : the squares of the relative errors on each feed alone, those that only decide with others included.
    """

    error: float
    squares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judges:
    """The feeds that decide.

    Attributes
    ----------
    held_out : which neither the planned factors nor the walk have seen, where there are such.
    chosen_on : of those that the walk chose its pulls on, where the others have few samples; else none.
    """

    held_out: Feeds
    chosen_on: Feeds | None

    @property
    def few(self) -> bool:
        """Whether a gain has to be certain."""
        return self.held_out.samples < FEW_SAMPLES

    def feeds(self) -> Iterator[Feed]:
        """All of them, the held-out ones first."""
        return chain(self.held_out, self.chosen_on or ())

    def judge(self, workshop: Workshop, choices: Sequence[Choice]) -> Judgement:
        """Run the original, and the model that the choices make of the workshop's factors."""
        original, count = workshop.original.session, len(self.held_out)
        together = [OutputAccumulator(name) for name in original.outputs]
        squares = []
        with attempt(workshop, choices) as model:
            for index, (_, expected, actual) in enumerate(pair_outputs(original, model, self.feeds())):
                alone = [OutputAccumulator(name) for name in original.outputs]
                for output in (*alone, *(together if index < count else ())):
                    output.add(expected[output.name], actual[output.name])
                squares.append(overall_error([output.statistics() for output in alone]) ** 2)
        return Judgement(overall_error([output.statistics() for output in together]), tuple(squares))

    def prefer(self, after: Judgement, before: Judgement) -> bool:
        """Whether the model judged `after` is better: always on the held-out feeds, and with few samples for sure."""
        return after.error < before.error and (not self.few or _is_certain(before.squares, after.squares))


def find_judges(calibration: Feeds, held_out: Feeds, every: int) -> Judges:
    """The held-out feeds; where there are too few to hold any out, those that the walk doesn't solve for.

    Parameters
    ----------
    calibration, held_out : the same where none is held out.
    every : one calibration feed in so many is not solved for.
    """
    chosen_on = split_feeds(calibration, every)[1]
    if held_out is calibration:
        return Judges(chosen_on, None)
    return Judges(held_out, chosen_on if held_out.samples < FEW_SAMPLES else None)


def _is_certain(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the mean gain of a feed exceeds its standard error; one feed alone has none."""
    if not all(map(math.isfinite, after)):
        return False
    gains = np.array([square - new for square, new in zip(before, after, strict=True) if math.isfinite(square)])
    if len(gains) < 2:
        return bool(gains.sum() > 0.0)
    return bool(gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))
