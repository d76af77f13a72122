"""Certificates: bounds on what a factorization can do, each with what it rests on.

- `certify_spectral`: an upper bound on ``||W - L R||_2`` with a stated failure probability, and a lower bound.
- `certify_classifier`: for the weight of a softmax classifier, bounds on the change of the class probabilities, and the
  samples whose top-1 class can't change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import NUMPY
from lowrank_onnx.linalg.orthonormal import orthonormalize
from lowrank_onnx.linalg.sketch import draw_gaussian

STARTS = 4
"""Independent random starts of the spectral certificate: all of them must fail for the bound to fail."""

CLASS_PIECE = 4096
"""Rows of weight errors that are widened to float64 at a time."""


@dataclass(frozen=True, slots=True)
class SpectralCertificate:
    """``lower <= ||W - L R||_2 <= upper``.

    `lower` always holds, up to rounding. `upper` holds except with `failure_probability` over the random starts, or
    always where that is 0 (it is then the Frobenius norm).
    """

    lower: float
    upper: float
    failure_probability: float


def certify_spectral(
    W: NDArray[Any],
    left: NDArray[Any],
    right: NDArray[Any],
    *,
    failure_probability: float = 1e-9,
    steps: int = 16,
    seed: int = 0,
) -> SpectralCertificate:
    """Bound the spectral norm of ``E = W - left @ right`` from both sides.

    Block Lanczos on E'E from STARTS independent Gaussian columns. From one of them `shortfall_bound` says how far the
    largest Ritz value may fall short, and with what probability; the block's Ritz value is no smaller than that of any
    of its columns alone, so the block fails with the STARTS-th power of that probability.
    Unlike the bound of Halko, Martinsson and Tropp (``10 sqrt(2/pi) max ||E w_i||``) it is within some ten percent of
    the norm, whatever the shape. The Frobenius norm is given instead where it is smaller.

    Parameters
    ----------
    W : (in, out); left : (in, r); right : (r, out)
    failure_probability : of `upper`, above 0 and below 1.
    steps : products with E and its transpose for each start, at least 2; more make `upper` tighter.

    Raises
    ------
    FactorizationError
        for shapes that don't fit together, or options out of range.
    """
    _check_factors(W, left, right)
    if not 0.0 < failure_probability < 1.0:
        raise FactorizationError(
            f"failure_probability {failure_probability:g}: expected above 0 and below 1, e.g. 1e-9"
        )
    if steps < 2:
        raise FactorizationError(f"steps {steps}: expected at least 2")
    E = _error(W, left, right)
    E = E if E.shape[0] >= E.shape[1] else E.T
    frobenius = float(np.linalg.norm(E))
    size = E.shape[1]
    if frobenius == 0.0 or size == 1:
        return SpectralCertificate(frobenius, frobenius, 0.0)
    E = E / frobenius
    starts = min(STARTS, size)
    taken = min(steps, size // starts)
    lower = _largest_ritz_value(E, starts, taken, seed) ** 0.5
    factor = 1.0
    if starts * taken < size:
        factor = shortfall_bound(size, taken, failure_probability ** (1.0 / starts))
    # Products are in float64 and E is normalized, so rounding is far below this allowance.
    rounding = 1.0 + 1e-10
    upper = lower * factor * rounding
    if upper >= 1.0:
        return SpectralCertificate(lower * frobenius, frobenius * rounding, 0.0)
    return SpectralCertificate(lower * frobenius, upper * frobenius, failure_probability)


def shortfall_bound(size: int, steps: int, failure_probability: float) -> float:
    """How many times the largest Ritz value's root the norm is at most, after k Lanczos steps on E'E of order n.

    It fails with at most `failure_probability` over a start b that is uniform on the sphere: ``P <= sqrt(2 n / pi) /
    cosh((2k - 1) artanh(sqrt(eps)))`` for a Ritz value below 1 - eps times the largest eigenvalue. For with that
    eigenvalue 1, ``sum b_i**2 p(t_i)**2 (t_i - 1 + eps) < 0`` over all eigenvalues t_i for every polynomial p of degree
    k - 1. Take ``p(t) = T(u) / u`` with ``u**2 = 1 - t / (1 - eps)`` and T the Chebyshev polynomial of degree 2k - 1:
    then ``b_1**2 sinh**2(z) < sum of the other b_i**2`` with ``z = (2k - 1) artanh(sqrt(eps))``, so ``|b_1| < 1 /
    cosh(z)``; and b_1 has a density of at most ``sqrt(n / (2 pi))``. As ``cosh(z) > exp(z) / 2`` and ``artanh(x) > x``,
    this is sharper than theorem 4.2 of Kuczynski and Wozniakowski (SIAM J. Matrix Anal. Appl. 13, 1992), ``P <= 1.648
    sqrt(n) exp(-(2k - 1) sqrt(eps))``.
    """
    z = math.acosh(max(math.sqrt(2.0 * size / math.pi) / failure_probability, 1.0))
    return math.cosh(z / (2 * steps - 1))


@dataclass(frozen=True, slots=True)
class ClassifierCertificate:
    """What replacing a classifier's weight by its factors can do to its class probabilities, for each of n samples.

    Attributes
    ----------
    probability_change : (n,)
        Upper bounds on the total variation distance between the two softmax outputs, from each sample's norm alone:
        they hold for every input of that norm.
    paper_probability_change : (n,)
        The bound of arXiv 2604.02659 for comparison, on the Euclidean norm of the change: half the spectral error times
        the input's norm (softmax is 1/2-Lipschitz). The total variation may be up to sqrt(classes) / 2 times that.
    measured_probability_change : (n,)
        Upper bounds from the change of the logits of this very sample.
    measured_log_ratio : (n,)
        No class probability of this very sample changes by a factor outside exp(-this) to exp(this).
    stable : (n,), bool
        The samples whose top-1 class can't change, nor could for any input of the same norm and the same logits.
    paper_stable : (n,), bool
        The same by the spectral norm: margin above ``sqrt(2) ||E||_2 ||x||_2``; never more than `stable`.
    """

    probability_change: NDArray[np.float64]
    paper_probability_change: NDArray[np.float64]
    measured_probability_change: NDArray[np.float64]
    measured_log_ratio: NDArray[np.float64]
    stable: NDArray[np.bool_]
    paper_stable: NDArray[np.bool_]

    @property
    def stable_share(self) -> float:
        """The share of samples whose top-1 class can't change."""
        return float(np.mean(self.stable))


def certify_classifier(
    W: NDArray[Any],
    left: NDArray[Any],
    right: NDArray[Any],
    inputs: NDArray[Any],
    logits: NDArray[Any],
) -> ClassifierCertificate:
    """Bound what ``W -> left @ right`` does to ``softmax(x @ W + b)``.

    With ``E = W - left @ right`` and dz = x E: the total variation is at most ``tanh(osc(dz) / 4)`` for
    ``osc = max - min``, and osc is at most ``||x||_2`` times the largest distance between two columns of E. Class y
    can't lose to j while ``z_y - z_j > ||E_y - E_j||_2 ||x||_2``.

    Parameters
    ----------
    W : (in, classes); left : (in, r); right : (r, classes)
    inputs : (n, in), what the classifier is given.
    logits : (n, classes), what the original makes of it, bias included.

    Raises
    ------
    FactorizationError
        for shapes that don't fit together, no samples, or values that are not finite.
    """
    _check_factors(W, left, right)
    if inputs.ndim != 2 or inputs.shape[0] == 0 or inputs.shape[1] != W.shape[0]:
        raise FactorizationError(
            f"inputs of shape {inputs.shape}: expected (samples, {W.shape[0]}), at least one sample"
        )
    if logits.shape != (inputs.shape[0], W.shape[1]):
        raise FactorizationError(f"logits of shape {logits.shape}: expected {(inputs.shape[0], W.shape[1])}")
    X, Z = inputs.astype(np.float64), logits.astype(np.float64)
    if not (np.all(np.isfinite(X)) and np.all(np.isfinite(Z))):
        raise FactorizationError("inputs or logits with NaN or infinite entries: expected finite")
    E = _error(W, left, right)
    distances = _column_distances(E)
    norms = np.linalg.norm(X, axis=1)
    top = np.argmax(Z, axis=1)
    rows = np.arange(Z.shape[0])
    margins = Z[rows, top][:, None] - Z
    reach = distances[top] * norms[:, None]
    others = np.ones_like(margins, dtype=bool)
    others[rows, top] = False
    spectral = float(np.linalg.norm(E, 2))
    oscillation = np.ptp(X @ E, axis=1)
    return ClassifierCertificate(
        probability_change=np.tanh(np.max(distances) * norms / 4.0),
        paper_probability_change=np.minimum(spectral * norms / 2.0, math.sqrt(2.0)),
        measured_probability_change=np.tanh(oscillation / 4.0),
        measured_log_ratio=oscillation,
        stable=np.all((margins > reach) | ~others, axis=1),
        paper_stable=np.all((margins > math.sqrt(2.0) * spectral * norms[:, None]) | ~others, axis=1),
    )


def _largest_ritz_value(E: NDArray[np.float64], starts: int, steps: int, seed: int) -> float:
    """The largest eigenvalue of E'E on the block Krylov space of `steps` blocks of `starts` Gaussian columns."""
    size = E.shape[1]
    basis = np.empty((size, 0))
    images = np.empty((E.shape[0], 0))
    X = draw_gaussian(size, starts, seed, np.dtype(np.float64), stream=3)
    for _ in range(steps):
        for _repeat in range(2):
            X = orthonormalize(NUMPY, X - basis @ (basis.T @ X))
        image = E @ X
        basis = np.concatenate((basis, X), axis=1)
        images = np.concatenate((images, image), axis=1)
        X = E.T @ image
    return float(np.linalg.norm(images, 2)) ** 2


def _column_distances(E: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, k) Euclidean distances between the columns of E, rounded up."""
    gram = E.T @ E
    squares = np.diagonal(gram)
    slack = 1e-14 * E.shape[0] * (squares[:, None] + squares[None, :])
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0) + slack)
    return distances


def _error(W: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """``W - left @ right`` in float64."""
    error = W.astype(np.float64)
    for start in range(0, W.shape[0], CLASS_PIECE):
        piece = slice(start, start + CLASS_PIECE)
        error[piece] -= left[piece].astype(np.float64) @ right.astype(np.float64)
    if not np.all(np.isfinite(error)):
        raise FactorizationError("weight or factors with NaN or infinite entries: expected finite")
    return error


def _check_factors(W: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> None:
    fitting = W.ndim == left.ndim == right.ndim == 2 and W.size > 0
    if not fitting or left.shape != (W.shape[0], right.shape[0]) or right.shape[1] != W.shape[1]:
        raise FactorizationError(
            f"factors of shape {left.shape} and {right.shape} for a weight of shape {W.shape}: "
            "expected (in, r) and (r, out)"
        )
