"""Subspace iteration on W'W filtered by Chebyshev polynomials: few large products, for ranks that are a fair share.

Chebyshev filtered subspace iteration (Rutishauser, Numer. Math. 16, 1970; Zhou, Saad, Tiago and Chelikowsky, J.
Comput. Phys. 219, 2006): of all polynomials that are small on the unwanted end of a spectrum these grow fastest beyond
it. The shifted power iterations of dashSVD (arXiv 2404.09276) are their first degree. A filter is applied here as its
linear factors, so that an orthonormalization fits between any two of them, and float32 never has to hold the growth of
a whole polynomial.

Where the unwanted part of the spectrum ends is read from the Ritz values after one plain product; whether the result
is good enough is measured, on what the Ritz vectors leave behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.exact import sorted_triplets, trustworthy
from lowrank_onnx.linalg.krylov import most_left_behind
from lowrank_onnx.linalg.orthonormal import orthonormalize
from lowrank_onnx.linalg.precision import squared_norm
from lowrank_onnx.linalg.sketch import draw_uniform
from lowrank_onnx.linalg.solution import Triplets

OVERSAMPLING_SHARE = 5
"""One column more for each so many of the rank: more columns want a lower degree. (Measured from 3 to 8: flat at 5.)"""

EDGE = 1.25
"""The edge of the unwanted spectrum over the geometric mean of the Ritz values at the rank and at the last column, one
product after a random start. (Measured: 0.9 to 1.5 on the benchmark's spectra.)"""

CONVERGED_EDGE = 1.05
"""The same over the last Ritz value, after a filter."""

WANTED_GROWTH = ((0.125, 0.25), (5.25, 3.75))
"""Logarithm of how much more the direction at the rank is to be amplified by the first filter than any unwanted one,
by the slope of the first Ritz values, for two shares of the order: between them on a line, beyond them as at the
nearer one. (Calibrated on the benchmark's spectra and a Gaussian one at six shares: a filter more for what falls short
costs a third of the whole, a degree too many a tenth.)"""

AGAIN_GROWTH = 2.0
"""The same for a filter after one that wasn't enough."""

SMALLEST = 1e-3
"""Of the Ritz value at the rank: less isn't made of the last one, which rounding may leave negative."""

MOST_DEGREES = 7
"""Of one filter."""

MOST_GROWTH = 3e5
"""By how much more one direction may be amplified than another between two orthonormalizations. In float32 the weakest
is then still known to two digits, and the Gram matrix, which is taken in float64, is positive definite."""

HARMLESS_GROWTH = 300.0
"""Up to this growth one orthonormalization leaves a basis orthonormal enough to project on."""

MOST_FILTERS = 3
"""In a row: then the exact solver is the better answer."""

WIDE = 2.5
"""Up to this m / n the projected matrix is taken from W times the basis, which then gives the left vectors for little;
beyond, from the Gram matrix times the basis."""

PROBES = 8
"""Ritz vectors beyond the rank, and as many random columns, from which a residual is probed."""

PROBE_STEPS = 4
"""Block Lanczos steps of that."""

ACCEPTED_SHARE = 0.75
"""The share of ``tolerance - 1`` at which a result is accepted: a probe sees up to a percent less than there is."""

BISECTIONS = 30
"""Steps for an eigenvalue of a bordered diagonal matrix: far beyond what is asked of it."""

UNIFORM_DEVIATION = 74.0
"""Standard deviation of the entries of `draw_uniform`."""

FLAT = 0.06
"""How far the first of the dropped values is taken to lie above their mean, at most: so much as their spread."""


@dataclass(frozen=True, slots=True)
class _Spectrum:
    """What is known of W'W of order n without its eigenvalues: their sum, and the sum of their squares."""

    size: int
    total: float
    squares: float

    def flat_tail(self, ritz: NDArray[np.float64], outside: float) -> float:
        """The level of a tail so flat that it doesn't matter which directions of it are taken; 0 where it isn't flat.

        A lower estimate of its largest value: its mean and spread, from (l,) Ritz values and ``||G Q - Q T||_F**2``.
        Ritz values converge too slowly there to tell.
        """
        rest = self.size - ritz.size
        mean = (self.total - float(np.sum(ritz))) / rest
        variance = (self.squares - float(np.sum(ritz**2)) - 2.0 * outside) / rest - mean**2
        spread = math.sqrt(max(variance, 0.0)) / mean if mean > 0.0 else math.inf
        return mean * (1.0 + spread) if spread <= FLAT else 0.0


@dataclass(frozen=True, slots=True)
class _RitzPairs:
    """Leading eigenpairs of W'W on a subspace.

    Attributes
    ----------
    values : (l,) all Ritz values, in float64, descending.
    wanted, following : (n, r) and (n, PROBES) Ritz vectors: the leading ones and the next.
    scaled_left : (m, r), W times the wanted ones, where that came by.
    """

    values: NDArray[np.float64]
    wanted: DeviceArray
    following: DeviceArray
    scaled_left: DeviceArray | None


def solve_chebyshev(backend: Backend, W: DeviceArray, rank: int, *, tolerance: float, seed: int) -> Triplets | None:
    """The leading `rank` triplets of a tall W (m, n), m >= n, to a normalised spectral error of about `tolerance`.

    Returns
    -------
    Triplets or None
        None where the rank leaves no room for more columns, where MOST_FILTERS were not enough, or where squaring has
        lost the small singular values.
    """
    xp = backend.xp
    n = W.shape[1]
    columns = filtered_columns(rank)
    if not has_room(rank, n):
        return None
    G = backend.gram(W)
    dtype = backend.numpy_dtype(W)
    basis = orthonormalize(backend, G @ backend.to_device(draw_uniform(n, columns, seed, dtype)))
    image = G @ basis
    projected = basis.T @ image
    values = _host(backend, xp.flip(xp.linalg.eigvalsh(projected)))
    if not trustworthy(backend, values[: rank + 1], W.dtype):
        return None
    spectrum = _Spectrum(n, float(xp.sum(xp.linalg.diagonal(G))), squared_norm(backend, G))
    accepted = (1.0 + ACCEPTED_SHARE * (tolerance - 1.0)) ** 2
    flat = spectrum.flat_tail(values, _outside(backend, image, projected))
    last = max(float(values[columns - 1]), SMALLEST * float(values[rank]))
    edge = EDGE * math.sqrt(float(values[rank]) * last)
    wanted = float(np.interp(rank / n, *WANTED_GROWTH))
    degree = 1 if flat > 0.0 else filter_degree(float(values[rank - 1]) / last, wanted)
    total = 1
    for _ in range(MOST_FILTERS):
        basis, growth = _filtered(backend, G, basis, image, roots(degree, edge), float(values[0]), edge)
        total += degree
        pairs = _ritz_pairs(backend, W, G, basis, rank, orthonormal=growth <= HARMLESS_GROWTH)
        if pairs is None or not trustworthy(backend, pairs.values[: rank + 1], W.dtype):
            return None
        left_behind, following = _measured(backend, G, pairs, rank, seed)
        if left_behind > max(following, flat) * accepted:
            # The next filter needs this product; it also tells whether the tail is too flat to need one.
            image = G @ basis
            flat = spectrum.flat_tail(pairs.values, _outside(backend, image, basis.T @ image))
        if left_behind <= max(following, flat) * accepted:
            scaled_left = W @ pairs.wanted if pairs.scaled_left is None else pairs.scaled_left
            solver = f"chebyshev(l={columns}, degree={total})"
            return sorted_triplets(backend, scaled_left, pairs.wanted, solver, max(left_behind, following) ** 0.5)
        edge = CONVERGED_EDGE * max(float(pairs.values[columns - 1]), SMALLEST * float(pairs.values[rank]))
        degree = filter_degree(float(pairs.values[rank - 1]) / edge, AGAIN_GROWTH)
    return None


def filtered_columns(rank: int) -> int:
    """Columns that are iterated for a rank: a fifth more, in whole vector registers."""
    return -(-(rank + max(PROBES, rank // OVERSAMPLING_SHARE)) // 8) * 8


def has_room(rank: int, size: int) -> bool:
    """Whether a matrix of that order has room for the columns, and for a probe of what they leave behind."""
    return filtered_columns(rank) + 2 * PROBES * PROBE_STEPS <= size


def filter_degree(ratio: float, growth: float) -> int:
    """The degree at which a Chebyshev polynomial has grown to exp(growth) / 2 at `ratio` times its interval's end."""
    return min(max(1, round(growth / math.acosh(max(2.0 * ratio - 1.0, 1.001)))), MOST_DEGREES)


def roots(degree: int, edge: float) -> list[float]:
    """The roots of the Chebyshev polynomial of [0, edge], from the outside in: large and small ones in turn."""
    ordered = [edge / 2 * (1.0 + math.cos((2 * i + 1) * math.pi / (2 * degree))) for i in range(degree)]
    return [ordered[i // 2] if i % 2 == 0 else ordered[-1 - i // 2] for i in range(degree)]


def _filtered(
    backend: Backend,
    G: DeviceArray,
    basis: DeviceArray,
    image: DeviceArray,
    zeros: list[float],
    top: float,
    edge: float,
) -> tuple[DeviceArray, float]:
    """A basis of the polynomial with these zeros in G, times `basis`; `image` is G times it.

    Orthonormal to rounding times the growth that is returned: that since the last orthonormalization but one.
    """
    X, growth = basis, 1.0
    for index, zero in enumerate(zeros):
        step = (top - zero) / (edge / 2)
        if growth * step > MOST_GROWTH:
            X, growth = orthonormalize(backend, X), 1.0
        product = image if index == 0 else G @ X
        X = product - zero * X
        growth *= step
    return orthonormalize(backend, X), growth


def _outside(backend: Backend, image: DeviceArray, projected: DeviceArray) -> float:
    """``||G Q - Q T||_F**2`` for an orthonormal Q, from ``G Q`` and ``T = Q' G Q``."""
    return max(squared_norm(backend, image) - squared_norm(backend, projected), 0.0)


def _ritz_pairs(
    backend: Backend, W: DeviceArray, G: DeviceArray, basis: DeviceArray, rank: int, *, orthonormal: bool
) -> _RitzPairs | None:
    """The Ritz pairs of W'W on the span of `basis`, which is orthonormal, or to a digit or two."""
    xp = backend.xp
    narrow = W.shape[0] <= WIDE * W.shape[1]
    product = W @ basis if narrow else G @ basis
    projected = product.T @ product if narrow else basis.T @ product
    inverse = None
    if not orthonormal:
        inverse = backend.inverse_cholesky(xp.astype(basis.T @ basis, xp.float64, copy=False))
        if inverse is None:
            return None
        inverse = xp.astype(inverse, W.dtype, copy=False)
        projected = inverse.T @ projected @ inverse
    squares, vectors = backend.eigh_leading(projected, projected.shape[0])
    kept = vectors[:, : rank + PROBES]
    kept = backend.contiguous(kept if inverse is None else inverse @ kept)
    leading = backend.contiguous(kept[:, :rank])
    scaled_left = product @ leading if narrow else None
    return _RitzPairs(_host(backend, squares), basis @ leading, basis @ kept[:, rank:], scaled_left)


def _measured(backend: Backend, G: DeviceArray, pairs: _RitzPairs, rank: int, seed: int) -> tuple[float, float]:
    """Two lower estimates: of the norm of G without the wanted Ritz vectors V, and of G's eigenvalue after the first r.

    With y the direction in which most is left behind, the latter is the least eigenvalue of G on span(V, y), which has
    r + 1 dimensions (Cauchy); or the Ritz value there, where that is larger.
    """
    xp = backend.xp
    V = pairs.wanted
    size, dtype = G.shape[0], backend.numpy_dtype(G)
    random = backend.to_device(draw_uniform(size, PROBES, seed, dtype, stream=1)) / (UNIFORM_DEVIATION * size**0.5)
    start = xp.concat((pairs.following, random), axis=1)
    left_behind, y = most_left_behind(backend, partial(xp.matmul, G), V, start, PROBE_STEPS)
    coupling = _host(backend, (V.T @ (G @ y))[:, 0])
    return left_behind, max(float(pairs.values[rank]), least_bordered(pairs.values[:rank], coupling, left_behind))


def least_bordered(diagonal: NDArray[np.float64], border: NDArray[np.float64], corner: float) -> float:
    """The least eigenvalue of ``[[diag(diagonal), border], [border', corner]]``, or a little less, by bisection."""
    high = min(float(np.min(diagonal)), corner)
    low = high - float(np.linalg.norm(border))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        above = corner - middle - float(np.sum(border**2 / np.maximum(diagonal - middle, 1e-300)))
        low, high = (middle, high) if above > 0.0 else (low, middle)
    return low


def _host(backend: Backend, values: DeviceArray) -> NDArray[np.float64]:
    return backend.to_host(values).astype(np.float64)
