"""A second moment that is safe to whiten with, also where few rows were seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lowrank_onnx.moments.lookups import smoothed_shares
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.types import Array, WeightRef

UNEXCITED = 1e-30
"""The second moment of an input that was never seen to be anything but 0: far below any that was."""


def shrinkage(matrix: Array, rows: int) -> float:
    """How far to pull a second moment of `rows` rows towards a multiple of the identity, from 0 to 1.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance
    estimation", IEEE Trans. Signal Processing 58(10), 2010, equation 23. It vanishes as rows grow beyond what the
    spectrum of the moment asks for, and is 1 where the rows say next to nothing about most directions.
    """
    size = matrix.shape[0]
    trace: float = float(np.trace(matrix))
    if trace <= 0.0 or rows < 1 or size < 2:
        return 1.0
    norm = float(np.linalg.norm(matrix / trace))
    squared = norm * norm
    spread = squared - 1.0 / size
    if spread <= 0.0:
        return 1.0
    share: float = ((1.0 - 2.0 / size) * squared + 1.0) / ((rows + 1.0 - 2.0 / size) * spread)
    return min(1.0, share)


def shrunk_second_moment(moment: Moment) -> Array:
    """(groups, in, in): the moment of each group, pulled towards its mean eigenvalue by `shrinkage`.

    That of lookups, (groups, in), is smoothed instead (`lowrank_onnx.moments.lookups.smoothed_shares`).

    A direction that the feeds never showed would count for nothing in the moment itself, and the factors would be free
    to do anything there; pulled, it counts as much as the number of rows warrants. A group whose inputs were all 0 gets
    next to nothing of the identity: its factors follow the plain norm, and count for nothing beside other groups.
    """
    if moment.diagonal:
        return smoothed_shares(moment)
    identity = np.eye(moment.in_features)
    shrunk = []
    for matrix in moment.second_moment:
        if not np.trace(matrix) > 0.0 and np.isfinite(matrix).all():
            shrunk.append(UNEXCITED * identity)
            continue
        share = shrinkage(matrix, moment.rows)
        shrunk.append((1.0 - share) * matrix + share * float(np.trace(matrix)) / moment.in_features * identity)
    return np.stack(shrunk)


class ShrunkMoments(Mapping[WeightRef, Array]):
    """The shrunk second moments of weights, each made when it is asked for: all of them at once may not fit."""

    def __init__(self, moments: Mapping[WeightRef, Moment]) -> None:
        self._moments = moments

    def __getitem__(self, weight: WeightRef) -> Array:
        return shrunk_second_moment(self._moments[weight])

    def __iter__(self) -> Iterator[WeightRef]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)
