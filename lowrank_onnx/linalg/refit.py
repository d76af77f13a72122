"""The least-squares problem of a leading factor whose successor is fixed, by a few conjugate gradient steps."""

from __future__ import annotations

from collections.abc import Callable

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.folded import Folded, leading_marginal, trailing_marginal
from lowrank_onnx.linalg.weighted import FLOOR

REFIT_STEPS = 2
"""Conjugate gradient steps of one refit of `first`: on the shipped VGG, more gained less than half a percent."""


def refit(
    backend: Backend, folded: Folded, first: DeviceArray, second: DeviceArray, target: DeviceArray | None = None
) -> DeviceArray:
    """`first` (a, r) improved for a fixed `second` (r b, columns), orthonormalized.

    The normal equations couple all of `first`, so they are solved by a few conjugate gradient steps from where it is,
    preconditioned by the closed form that they have in a metric of product form.

    Parameters
    ----------
    target : C times what is approximated, (a, b, columns); None for C W.
    """
    xp = backend.xp
    a, b, _ = folded.weight.shape
    rank, columns = first.shape[1], second.shape[1]
    image = folded.image if target is None else target
    slabs = xp.reshape(second, (rank, b * columns))

    def gradient(image_of: DeviceArray) -> DeviceArray:
        return xp.reshape(image_of, (a, b * columns)) @ slabs.T

    def product(X: DeviceArray) -> DeviceArray:
        return folded.apply(backend, xp.reshape(X @ slabs, (a, b, columns)))

    precondition = _preconditioner(backend, folded, slabs, b)
    X, residual = first, gradient(image - product(first))
    direction = step = precondition(residual)
    size = float(xp.sum(residual * step))
    for _ in range(REFIT_STEPS):
        moved = gradient(product(direction))
        curvature = float(xp.sum(direction * moved))
        if not curvature > 0.0 or not size > 0.0:
            break
        X = X + (size / curvature) * direction
        residual = residual - (size / curvature) * moved
        step = precondition(residual)
        size, previous = float(xp.sum(residual * step)), size
        direction = step + (size / previous) * direction
    return xp.linalg.qr(X)[0]


def _preconditioner(
    backend: Backend, folded: Folded, slabs: DeviceArray, b: int
) -> Callable[[DeviceArray], DeviceArray]:
    """The inverse of the normal equations of `first`, were the metric the product of its two marginals."""
    xp = backend.xp
    rank = slabs.shape[0]
    parts = xp.reshape(slabs, (rank, b, -1))
    weighted = xp.tensordot(parts, trailing_marginal(backend, folded), axes=((1,), (0,)))
    coupling = xp.reshape(parts, (rank, -1)) @ xp.reshape(xp.permute_dims(weighted, (0, 2, 1)), (rank, -1)).T
    inner, outer = (_floored_inverse(backend, G) for G in (leading_marginal(backend, folded), coupling))
    return lambda X: inner @ (inner.T @ X) @ outer @ outer.T


def _floored_inverse(backend: Backend, G: DeviceArray) -> DeviceArray:
    """``R^-1`` with ``R' R`` = G + FLOOR times its mean diagonal; the identity where even that isn't definite."""
    xp = backend.xp
    size = G.shape[0]
    identity = xp.eye(size, dtype=xp.float64, device=backend.device)
    inverse = backend.inverse_cholesky((G + G.T) / 2.0 + FLOOR * float(xp.linalg.trace(G)) / size * identity)
    return identity if inverse is None else inverse
