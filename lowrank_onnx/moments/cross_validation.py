"""How far to believe a second moment of few samples, by samples that it was not made of.

Rows of one sample (patches, tokens) resemble each other, so that a count of rows says little of what a moment is worth.
Here the samples are in a few parts; factors of a weight are made from all parts but one, their error is measured on
that one, and so for each part in turn. With ``V`` the leading directions of ``W' C W``, the factors that a moment C
gives are ``(W V) V'``, and their error on inputs with the second moment B is ``trace(W' B W) - trace(V' W' B W V)``:
all that is needed are the matrices ``W' C W`` of the parts, of the smaller side of W, whatever the size of C.

Of several pulls towards the identity, of which the last leaves nothing of the moment, the one with the least error on
parts that it has not seen is taken. The same errors show by how much the error on the very samples that the factors
were made from is too small: as many directions as there are rows seem to cost nothing there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.types import Array

PULLS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)
"""How far from the least shrinkage to the whole way the pulls go that compete."""

ENOUGH_WORSE = 2
"""Pulls in a row that do worse than one before, after which stronger ones aren't tried."""

LARGEST_SIDE = 2048
"""Weights whose smaller side is larger are not validated: each pull is an eigenproblem of that size for each part."""


_ALL_LOST = (1.0, 1.0)
"""Where nothing is kept, any samples agree."""


@dataclass(frozen=True, slots=True)
class Validated:
    """What held-out samples say of one weight.

    Attributes
    ----------
    share : the share of the identity in the moment, from 0 to 1.
    tails : (tail energy as the moment predicts it, tail energy on held-out samples) at some ranks, both relative,
        rising.
    """

    share: float
    tails: tuple[tuple[float, float], ...]

    def honest(self, tail: float) -> float:
        """The tail energy to expect on other samples where the moment predicts `tail`; it never falls as that grows."""
        if tail <= 0.0 or not self.tails:
            return max(tail, 0.0)
        points = (*self.tails, _ALL_LOST)
        position = bisect_left(points, (tail, -math.inf))
        if position == 0:
            known, found = points[0]
            return found * (tail / known)
        if position == len(points):
            return 1.0
        (low, below), (high, above) = points[position - 1], points[position]
        part = (math.log(tail) - math.log(low)) / (math.log(high) - math.log(low))
        return math.exp(math.log(below) + part * (math.log(above) - math.log(below)))


def validate_shrinkage(
    matrices: Array, parts: Sequence[Moment], least: float, ranks: Sequence[int], held_out: int | None = None
) -> Validated | None:
    """Choose the share of the identity by parts of the samples that the moment was not made of.

    Parameters
    ----------
    matrices : (groups, in, out), the weight.
    parts : the moment of each part of the samples, at least two.
    least : the least share of the identity that is considered.
    ranks : the ranks at which errors count, ascending.
    held_out : how many of the parts, the first ones, are held out in turn; None for all.

    Returns
    -------
    None for weights above `LARGEST_SIDE`, and those that no input excites.
    """
    if min(matrices.shape[1:]) > LARGEST_SIDE or len(parts) < 2 or not ranks:
        return None
    problems = [_Problem.of(matrix, parts, group) for group, matrix in enumerate(matrices)]
    held = range(len(parts) if held_out is None else held_out)
    total = sum(float(np.trace(problem.grams[part])) for problem in problems for part in held)
    if not 0.0 < total < math.inf:
        return None
    chosen = np.asarray(ranks) - 1
    best: tuple[float, float, NDArray[np.float64]] | None = None
    worse = 0
    for share in dict.fromkeys(1.0 - (1.0 - least) * (1.0 - pull) for pull in PULLS):
        missed = np.sum([problem.missed(share, held)[chosen] for problem in problems], axis=0) / total
        missed = np.maximum(missed, _SMALLEST)
        score = float(np.mean(np.log(missed)))
        if best is None or score <= best[0]:
            best, worse = (score, share, missed), 0
        else:
            worse += 1
        if worse == ENOUGH_WORSE:
            break
    assert best is not None
    _, share, missed = best
    predicted = _predicted(problems, share)[chosen]
    rising = np.maximum.accumulate(np.stack((predicted, missed))[:, ::-1], axis=1)
    points = {float(known): min(float(found), 1.0) for known, found in rising.T if _SMALLEST < known < 1.0}
    return Validated(share, tuple(points.items()))


_SMALLEST = 1e-12
"""Relative tail energy below which everything is rounding."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """One matrix: W' C W of each part and W' W, on the smaller side of W, and trace(C) / in of each part."""

    grams: tuple[NDArray[np.float64], ...]
    plain: NDArray[np.float64]
    levels: tuple[float, ...]

    @classmethod
    def of(cls, matrix: Array, parts: Sequence[Moment], group: int) -> _Problem:
        W = matrix.astype(np.float64)
        if W.shape[1] > W.shape[0]:
            W = np.linalg.qr(W.T)[1].T
        weights = [part.positions / sum(one.positions for one in parts) for part in parts]
        moments = [part.second_moment[group] for part in parts]
        grams = tuple(weight * (W.T @ (C @ W)) for weight, C in zip(weights, moments, strict=True))
        levels = tuple(weight * float(np.trace(C)) / len(C) for weight, C in zip(weights, moments, strict=True))
        return cls(grams, W.T @ W, levels)

    def shrunk(self, share: float, without: int | None = None) -> NDArray[np.float64]:
        """W' C W of the parts, but one, with a share of the identity in C."""
        taken = [index for index in range(len(self.grams)) if index != without]
        seen = np.sum([self.grams[index] for index in taken], axis=0)
        level = sum(self.levels[index] for index in taken)
        mixed: NDArray[np.float64] = (1.0 - share) * seen + share * level * self.plain
        return mixed

    def missed(self, share: float, held: Iterable[int]) -> NDArray[np.float64]:
        """The squared error on some parts by factors of all others, added up, at each rank from 1."""
        missed = np.zeros(len(self.plain))
        for part in held:
            gram = self.grams[part]
            _, vectors = np.linalg.eigh(self.shrunk(share, part))
            leading = vectors[:, ::-1]
            captured = np.cumsum(np.sum((gram @ leading) * leading, axis=0))
            missed += np.maximum(float(np.trace(gram)) - captured, 0.0)
        return missed


def _predicted(problems: Sequence[_Problem], share: float) -> NDArray[np.float64]:
    """The relative tail energies at each rank from 1 that the moment of all parts predicts."""
    values = np.sum([np.linalg.eigvalsh(problem.shrunk(share))[::-1] for problem in problems], axis=0)
    tails: NDArray[np.float64] = np.clip(1.0 - np.cumsum(values) / float(np.sum(values)), 0.0, None)
    return tails
