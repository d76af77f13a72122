"""Block Lanczos on W'W, fully reorthogonalized: the leading triplets from the smallest Krylov space that holds them.

Randomized block Krylov methods: Musco and Musco (NeurIPS 2015), Tropp and Webber (arXiv 2306.12418); that a block far
narrower than the rank needs the fewest products: Meyer, Musco and Musco (arXiv 2305.02535). A subspace iteration
spends each product on one more power; here every product also widens the space, and a space of about 2.3 r dimensions
holds the r leading directions of even slowly decaying spectra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from lowrank_onnx.linalg.backend import CACHED_ENTRIES, Backend, DeviceArray
from lowrank_onnx.linalg.exact import sorted_triplets, trustworthy
from lowrank_onnx.linalg.orthonormal import orthonormal_complement, orthonormalize, project_out
from lowrank_onnx.linalg.sketch import draw_gaussian, draw_uniform
from lowrank_onnx.linalg.solution import Triplets

Operator: TypeAlias = Callable[[DeviceArray], DeviceArray]
"""What a symmetric positive semidefinite operator of order n makes of a block (n, b)."""

NORM_STEPS = 10
"""Steps of the block Lanczos iteration that takes the norm of a small residual matrix."""

NORM_BLOCK = 4
"""Columns of its blocks."""

VERIFIED, VERIFYING_STEPS = 8, 2
"""Directions that a larger space sees left behind most, and block Lanczos steps with the operator itself from what it
makes of them: where the tail is dense, the space alone may see 1.00 where 1.07 is left behind."""

UNSEEN, ACCEPTED_SHARE = 1.005, 0.75
"""Those steps see up to half a percent less than the whole where that is near 1.02, and two percent where it is 1.06
(measured on the benchmark's spectra); the next eigenvalue is seen too small as well. What they see may be tolerance /
UNSEEN; for tolerances that this leaves little of, ACCEPTED_SHARE of ``tolerance - 1`` above 1."""

LOOKAHEAD = 4
"""The check looks at least rank / LOOKAHEAD columns ahead: a narrower look misses what a dense tail hides."""

STEEP = 1.2
"""Where the residual's norm is more than this times the next eigenvalue, the space grows by twice GROWTH."""

LARGE_RANK = 320
"""Above this rank the eigendecomposition of a failed check outweighs a few more products."""

LOOSER = 2.3
"""By how many times the rank the space may be smaller for each unit of the tolerance: measured on the slowest of the
benchmark's spectra, 4096 x 4096 at a rank of 200, for errors of 1.02 to 1.3."""

GROWTH = 0.15
"""By which share the space grows after a failed check, each of which costs an eigendecomposition."""


@dataclass(slots=True)
class KrylovSpace:
    """A growing orthonormal basis of the Krylov space of a symmetric positive semidefinite operator G of order n.

    The basis is held transposed, because new columns are then written, and read back by BLAS, as contiguous rows.

    Attributes
    ----------
    apply : the operator: (X, start) -> G X for the block X (n, b) that is to be columns ``start:start + b``.
    rows : (capacity, n), the transposed basis; the first `size` rows are orthonormal and have been multiplied by G.
    projected : (capacity, capacity), ``basis' G basis`` in its leading `size` rows and columns.
    pending : (n, b), the next block.
    """

    backend: Backend
    apply: Callable[[DeviceArray, int], DeviceArray]
    rows: DeviceArray
    projected: DeviceArray
    pending: DeviceArray
    size: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def basis(self) -> DeviceArray:
        """(n, size), orthonormal."""
        return self.rows[: self.size, :].T

    @property
    def matrix(self) -> DeviceArray:
        """(size, size): the operator on the space."""
        return self.projected[: self.size, : self.size]

    def image(self, coordinates: DeviceArray) -> DeviceArray:
        """What the operator makes of vectors in the space, given by their (size, b) coordinates: no product with it."""
        inside = self.basis @ (self.matrix @ coordinates)
        before, width = self.size - self.blocks[-1], self.pending.shape[1]
        if self.size + width > self.rows.shape[0]:
            return inside
        coupling = self.projected[self.size : self.size + width, before : self.size]
        return inside + self.pending @ (coupling @ coordinates[before:, :])

    def extend(self) -> None:
        """Multiply the pending block by the operator and find the next block."""
        X = self.pending
        start, stop = self.size, self.size + X.shape[1]
        self.rows[start:stop, :] = X.T
        Z = self.apply(X, start)
        diagonal = X.T @ Z
        self.projected[start:stop, start:stop] = (diagonal + diagonal.T) / 2
        Z = Z - X @ diagonal
        if self.blocks:
            before = start - self.blocks[-1]
            Z = Z - self.rows[before:start, :].T @ self.projected[before:start, start:stop]
        self.size = stop
        self.blocks.append(stop - start)
        width = min(X.shape[1], self.rows.shape[0] - stop)
        if width == 0:
            return
        # After the three-term recurrence once more against the whole basis, and as often as the block needs it.
        # Directions that QR makes up where the space is already invariant come out as random restarts.
        following = orthonormal_complement(self.backend, self.basis, Z[:, :width])
        coupling = following.T @ Z
        self.projected[stop : stop + width, start:stop] = coupling
        self.projected[start:stop, stop : stop + width] = coupling.T
        self.pending = following


def solve_krylov(
    backend: Backend, W: DeviceArray, rank: int, *, tolerance: float, seed: int, through_gram: bool, limit: int
) -> Triplets | None:
    """The leading `rank` triplets of a tall W (m, n), m >= n, to a normalised spectral error of about `tolerance`.

    The space grows until the part of W'W that its leading vectors leave behind has a norm within `tolerance` of the
    next eigenvalue: seen from a space that is one block larger first, then measured on W'W itself.

    Parameters
    ----------
    through_gram : multiply by the Gram matrix, formed once, instead of by W and W'.
    limit : the largest dimension of the space, where that is enough for a first look at it.

    Returns
    -------
    Triplets or None
        None where the limit was reached, or where squaring has lost the small singular values.
    """
    xp, size = backend.xp, W.shape[1]
    block = block_width(rank, W.shape[0] * size)
    target = -(-planned_dimension(rank, block, tolerance) // block) * block
    ahead = -(-max(block, rank // LOOKAHEAD) // block) * block
    if target + ahead > size:
        return None
    limit = min(max(limit, target + ahead), size)
    accepted = max(tolerance / UNSEEN, 1.0 + ACCEPTED_SHARE * (tolerance - 1.0))
    space, operator, products = _start(backend, W, block, min(limit + block, size), seed, through_gram)
    while True:
        while space.size < target:
            space.extend()
        depth = space.size
        squares, vectors = backend.eigh_leading(backend.contiguous(space.matrix), rank + 1)
        if not trustworthy(backend, squares, W.dtype):
            return None
        vectors = backend.contiguous(vectors[:, :rank])
        following = float(squares[rank])
        while space.size < depth + ahead:
            space.extend()
        start = _probe(backend, space.size, seed, W)
        left_behind, most = most_left_behind(
            backend, partial(xp.matmul, space.matrix), vectors, start, NORM_STEPS, VERIFIED
        )
        if left_behind <= following * tolerance**2:
            V = space.rows[:depth, :].T @ vectors
            left_behind, _ = most_left_behind(backend, operator, V, space.image(most), VERIFYING_STEPS)
            following = float(backend.eigenvalues(backend.contiguous(space.matrix))[rank])
            if left_behind <= following * accepted**2:
                break
        growth = GROWTH if left_behind < STEEP * following else 2 * GROWTH
        target = max(space.size, depth + block * max(1, round(growth * depth / block)))
        if target + ahead > limit:
            return None
    scaled_left = W @ V if products is None else products[:depth, :].T @ vectors
    kind = "gram" if through_gram else "direct"
    solver = f"krylov(b={block}, d={depth}, {kind})"
    return sorted_triplets(backend, scaled_left, V, solver, max(left_behind, following) ** 0.5)


def block_width(rank: int, entries: int) -> int:
    """Columns of a block, between what BLAS needs to run well and what wastes products, for a matrix of that size.

    In multiples of 32, which kernels for wide vector registers want: 24 columns run at three quarters of 32's rate.
    A matrix that no cache holds is read from memory for each block, and wants wider ones.
    """
    if rank <= 24:
        return 16
    columns_per_tile = 100 if entries > CACHED_ENTRIES else 192
    return min(32 * max(1, round(rank / columns_per_tile)), 128)


def planned_dimension(rank: int, block: int, tolerance: float) -> int:
    """The dimension at which the space is first expected to hold `rank` directions of a slowly decaying spectrum.

    Up to LARGE_RANK a check is cheap beside the products, and many spectra need less: aim low. Beyond, aim to pass.
    """
    times = 2.15 if rank > LARGE_RANK else 2.0
    return int(max(times - LOOSER * max(tolerance - 1.02, 0.0), 1.0) * rank) + block


def _start(
    backend: Backend, W: DeviceArray, block: int, capacity: int, seed: int, through_gram: bool
) -> tuple[KrylovSpace, Operator, DeviceArray | None]:
    """An empty space of W'W, that operator, and the (capacity, m) rows in which W times the basis is kept."""
    xp = backend.xp
    rows = xp.empty((capacity, W.shape[1]), dtype=W.dtype, device=backend.device)
    projected = xp.zeros((capacity, capacity), dtype=W.dtype, device=backend.device)
    sketch = backend.to_device(draw_uniform(W.shape[1], block, seed, backend.numpy_dtype(W)))
    first = orthonormalize(backend, sketch)
    if through_gram:
        times_gram = partial(xp.matmul, backend.gram(W))
        return KrylovSpace(backend, lambda X, _start: times_gram(X), rows, projected, first), times_gram, None
    products = xp.empty((capacity, W.shape[0]), dtype=W.dtype, device=backend.device)

    def apply(X: DeviceArray, start: int) -> DeviceArray:
        product = backend.product(W, X)
        products[start : start + X.shape[1], :] = product.T
        return backend.product(W.T, product)

    def operator(X: DeviceArray) -> DeviceArray:
        return backend.product(W.T, backend.product(W, X))

    return KrylovSpace(backend, apply, rows, projected, first), operator, products


def _probe(backend: Backend, size: int, seed: int, W: DeviceArray) -> DeviceArray:
    return backend.to_device(draw_gaussian(size, min(NORM_BLOCK, size), seed, backend.numpy_dtype(W), stream=1))


def most_left_behind(
    backend: Backend, operator: Operator, vectors: DeviceArray, start: DeviceArray, steps: int, count: int = 1
) -> tuple[float, DeviceArray]:
    """A lower estimate of the norm of ``(I - V V') T (I - V V')``, and the `count` directions that have most of it.

    T is symmetric of order k, given by what it makes of (k, b) blocks; V is orthonormal, (d, r), padded with zeros
    where d is less than k. `start` is (k, b): the estimate is from a small Krylov space of its own, of `steps` blocks.
    Squared singular values in and out; the directions are orthonormal, (k, at most `count`).
    """
    xp = backend.xp
    size, width = start.shape
    depth = vectors.shape[0]
    capacity = min(steps * width, size - vectors.shape[1])

    def complement(Y: DeviceArray) -> DeviceArray:
        inside = project_out(vectors, Y[:depth, :])
        return xp.concat((inside, Y[depth:, :])) if depth < size else inside

    space = KrylovSpace(
        backend,
        lambda X, _start: complement(operator(complement(X))),
        xp.empty((capacity, size), dtype=start.dtype, device=backend.device),
        xp.zeros((capacity, capacity), dtype=start.dtype, device=backend.device),
        orthonormalize(backend, complement(start)),
    )
    while space.size + width <= capacity:
        space.extend()
    values, vectors = backend.eigh_leading(backend.contiguous(space.matrix), min(count, space.size))
    return float(values[0]), space.basis @ backend.contiguous(vectors)
