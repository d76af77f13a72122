"""What samples can prove of all the data that they were drawn from: exact one-sided bounds for shares.

They hold for independent draws, whatever the true shares, with no large-sample approximation.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

CONFIDENCE = 0.95
"""Of every bound in a report, over all models that were judged by the same samples."""

_NUISANCE_SHARE = 0.1
"""Of the error that is allowed: for the bound of the share of samples in which two models differ."""

_GRID = 33
_HALVINGS = 40
_NEGLIGIBLE = 1e-12


def share_at_least(successes: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The lower bound of a share, given how many of a random draw had the property.

    It is the lower end of the one-sided interval of Clopper and Pearson, "The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26, 1934.
    """
    _check(successes, samples, confidence)
    return float(betaincinv(successes, samples - successes + 1, 1.0 - confidence)) if successes else 0.0


def share_at_most(successes: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The upper bound of a share: the other end of the interval of `share_at_least`."""
    return 1.0 - share_at_least(samples - successes, samples, confidence)


def drop_at_most(lost: int, gained: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The upper bound of how much smaller a second share is than a first, counted on the same samples.

    Both models were judged on every sample: `lost` had the property with the first model only, `gained` with the second
    only. What the two have in common says nothing about the difference, so this is much sharper than bounds of the two
    shares would be. The unknown share of samples in which they differ is bounded first, with a tenth of the error that
    is allowed; the result is the largest difference that is not rejected at any such share (Berger and Boos, "P values
    maximized over a confidence set for the nuisance parameter", JASA 89, 1994). Given m differing samples, the lost
    ones are binomial.

    Returns
    -------
    From -1 to 1; negative where the second share is larger for certain.
    """
    _check(lost + gained, samples, confidence)
    if min(lost, gained) < 0:
        raise ValueError(f"{lost} lost, {gained} gained: expected 0 or more of each")
    error = 1.0 - confidence
    most = share_at_most(lost + gained, samples, 1.0 - _NUISANCE_SHARE * error)
    left = (1.0 - _NUISANCE_SHARE) * error
    differing = np.linspace(most / _GRID, most, _GRID)
    return max(_largest_difference(lost - gained, samples, float(share), left) for share in differing)


def _largest_difference(excess: int, samples: int, differing: float, error: float) -> float:
    """The largest difference at which `excess` or less is seen with a probability of `error`, at a share of differing
    samples; that share itself where it can't be rejected, -1 where every difference that it allows can be.
    """
    from scipy.stats import binom  # takes as long to import as all of the rest, and few runs need it

    low, high = (int(binom.ppf(p, samples, differing)) for p in (_NEGLIGIBLE, 1.0 - _NEGLIGIBLE))
    counts = np.arange(low, high + 1)
    weights = binom.pmf(counts, samples, differing)
    most_lost = np.floor((counts + excess) / 2)

    def probability(difference: float) -> float:
        return float(weights @ binom.cdf(most_lost, counts, (1.0 + difference / differing) / 2)) + 2 * _NEGLIGIBLE

    if probability(differing) > error:
        return differing
    if probability(-differing) <= error:
        return -1.0
    rejected, kept = differing, -differing
    for _ in range(_HALVINGS):
        middle = (rejected + kept) / 2
        if probability(middle) > error:
            kept = middle
        else:
            rejected = middle
    return rejected


def _check(successes: int, samples: int, confidence: float) -> None:
    if samples < 1 or not 0 <= successes <= samples:
        raise ValueError(f"{successes} of {samples} samples: expected 0 <= successes <= samples, and some")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence!r}: expected a share between 0 and 1")
