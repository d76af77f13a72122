"""Search for the smallest share of parameters or MACs whose model still meets an error limit."""

from __future__ import annotations

from collections.abc import Callable

from lowrank_onnx.results import SearchStep


def search_share(
    error_at: Callable[[float], float], limit: float, *, floor: float = 0.0, resolution: float = 0.02
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
    low, high = floor, 1.0
    best: float | None = None
    steps: list[SearchStep] = []
    while high - low > resolution:
        share = (low + high) / 2
        error = error_at(share)
        accepted = error <= limit
        steps.append(SearchStep(keep=share, error=error, accepted=accepted))
        if accepted:
            best = high = share
        else:
            low = share
    return best, tuple(steps)
