"""Search over the share that a plan keeps: the smallest within a limit, or the largest that is fast enough."""

from __future__ import annotations

import math
from collections.abc import Callable

from lowrank_onnx.results import SearchStep
from lowrank_onnx.types import MetricComparison

RESOLUTION = 0.02
"""A search by halving ends when the interval of shares is at most this wide."""


def most_attempts(resolution: float = RESOLUTION) -> int:
    """How many models a search by halving tries at the most."""
    return math.ceil(math.log2(1.0 / resolution))


def search_share(
    error_at: Callable[[float], float], limit: float, *, floor: float = 0.0, resolution: float = RESOLUTION
) -> tuple[float | None, tuple[SearchStep, ...]]:
    """Bisect for the smallest share in (floor, 1) with ``error_at(share) <= limit``.

    The error need not fall strictly as the share grows: the smallest share that was accepted is returned, and it is one
    that was really tried. NaN is never accepted.

    Parameters
    ----------
    error_at : the measured error of the model at a share.
    limit : the largest error accepted.
    floor : the smallest share that can be realised.
    resolution : the search ends when the interval is at most this wide.

    Returns
    -------
    The share, or None where no share tried was accepted, and every attempt in order.
    """

    def attempt(share: float) -> SearchStep:
        error = error_at(share)
        return SearchStep(keep=share, error=error, accepted=error <= limit)

    return _halve(attempt, floor, resolution)


def search_drop(
    drop_at: Callable[[float], tuple[float, MetricComparison]],
    limit: float,
    *,
    floor: float = 0.0,
    resolution: float = RESOLUTION,
) -> tuple[float | None, tuple[SearchStep, ...]]:
    """Bisect for the smallest share in (floor, 1) at which a metric drops by no more than `limit`.

    Where the drop truly grows as the share falls, the models beyond the limit that this can try before it takes one of
    them in error lie on one path of halvings, whatever the samples say: `most_attempts` of them at the most. With the
    confidence shared among so many, what is taken holds with that confidence.

    Parameters
    ----------
    drop_at : relative output error, and the metric's comparison, of the model at a share.
    limit, floor, resolution : as in `search_share`.

    Returns
    -------
    The share, or None where no share tried was accepted, and every attempt in order.
    """

    def attempt(share: float) -> SearchStep:
        error, metric = drop_at(share)
        accepted = metric.within(limit)
        return SearchStep(share, error, accepted, drop=metric.drop, judged_drop=metric.judged_drop)

    return _halve(attempt, floor, resolution)


def _halve(
    attempt: Callable[[float], SearchStep], floor: float, resolution: float
) -> tuple[float | None, tuple[SearchStep, ...]]:
    low, high = floor, 1.0
    best: float | None = None
    steps: list[SearchStep] = []
    while high - low > resolution:
        share = (low + high) / 2
        steps.append(attempt(share))
        if steps[-1].accepted:
            best = high = share
        else:
            low = share
    return best, tuple(steps)


def search_speedup(
    race_at: Callable[[float], tuple[float, float]],
    target: float,
    *,
    floor: float,
    start: float,
    max_attempts: int = 5,
    slack: float = 0.05,
) -> tuple[float | None, tuple[SearchStep, ...]]:
    """Find the largest share in [floor, 1) whose model is measured as at least `target` times as fast.

    Time falls about linearly as the share does, and a share of 1 is the original, so each attempt is placed where the
    line through its neighbours aims at the target and half of `slack`. The search ends with a model that is fast enough
    but by no more than `slack` (relative) faster than asked. Before the target is called out of reach, the smallest
    share has been tried.

    Parameters
    ----------
    race_at : relative error and measured speedup of the model at a share.
    target : the least speedup that is accepted. NaN is never accepted.
    floor : the smallest share that can be realised, below 1.
    start : the first share to try; below the floor, the floor is tried.
    max_attempts : at least 2.

    Returns
    -------
    The share, or None where none tried was fast enough, and every attempt in order.
    """
    steps: list[SearchStep] = []
    slow: tuple[float, float] = (1.0, 1.0)
    fast: tuple[float, float] | None = None
    time = 1.0 / (target * (1.0 + slack / 2))
    share = max(start, floor)
    while True:
        error, speedup = race_at(share)
        accepted = speedup >= target
        steps.append(SearchStep(keep=share, error=error, accepted=accepted, speedup=speedup))
        if accepted:
            fast = (share, 1.0 / speedup)
        else:
            slow = (share, 1.0 / speedup if speedup > 0.0 else 1.0)
        bottom = floor if fast is None else fast[0]
        done = accepted and speedup <= target * (1.0 + slack)
        if done or len(steps) >= max_attempts or slow[0] <= bottom or (fast and slow[0] - bottom < _NO_CLOSER):
            return (fast[0] if fast else None), tuple(steps)
        if fast is not None:
            share = _between(slow, fast, time)
        elif len(steps) == max_attempts - 1:
            share = floor
        else:
            share = beyond(slow[0], slow[1], time)
            share = share if share - floor >= _NO_CLOSER else floor


_NO_CLOSER = 0.02
"""Shares that differ by less aren't worth another attempt."""


def _between(slow: tuple[float, float], fast: tuple[float, float], time: float) -> float:
    """The share at which the line between two (share, relative time) has `time`, and not too near to either."""
    part = (time - fast[1]) / (slow[1] - fast[1]) if slow[1] > fast[1] else 0.5
    return fast[0] + min(max(part, 0.1), 0.9) * (slow[0] - fast[0])


def beyond(share: float, share_time: float, time: float) -> float:
    """The share at which the line from the original through a share and its relative time has `time`.

    0 where that share gained nothing: no line leads from there to a shorter time.
    """
    return 1.0 - (1.0 - time) * (1.0 - share) / (1.0 - share_time) if share_time < 1.0 else 0.0
