"""The least-squares problem of a leading factor whose successor is fixed, by a few conjugate gradient steps."""

from __future__ import annotations

from collections.abc import Callable

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.folded import Folded, leading_marginal, trailing_marginal
from lowrank_onnx.linalg.orthonormal import orthonormalize
from lowrank_onnx.linalg.weighted import FLOOR

REFIT_STEPS = 2
"""Conjugate gradient steps of one refit of `first`: on the shipped VGG, more gained less than half a percent."""


def refit(
    backend: Backend, folded: Folded, first: DeviceArray, second: DeviceArray, target: DeviceArray | None = None
) -> DeviceArray:
    """`first` (a, r) improved for a fixed `second` (r b, columns), orthonormalized.

    The normal equations couple all of `first`, so they are solved by a few conjugate gradient steps from where it is,
    preconditioned by the closed form that they have in a metric of product form. All of it is in float32: steps that
    are few and inexact don't need more, and whoever asks for them measures in float64 what they gained.

    Parameters
    ----------
    target : C times what is approximated, (a, b, columns); None for C W.
    """
    xp = backend.xp
    b = folded.weight.shape[1]
    rank, columns = first.shape[1], second.shape[1]
    precondition = _preconditioner(backend, folded, xp.reshape(second, (rank, b * columns)), b)
    narrow = _Narrow(backend, folded, xp.astype(xp.reshape(second, (rank, b, columns)), xp.float32))
    image = xp.astype(folded.image if target is None else target, xp.float32)
    X = xp.astype(first, xp.float32)
    residual = narrow.gradient(image - narrow.product(X))
    direction = step = precondition(residual)
    size = float(xp.sum(residual * step))
    for _ in range(REFIT_STEPS):
        moved = narrow.gradient(narrow.product(direction))
        curvature = float(xp.sum(direction * moved))
        if not curvature > 0.0 or not size > 0.0:
            break
        X = X + (size / curvature) * direction
        residual = residual - (size / curvature) * moved
        step = precondition(residual)
        size, previous = float(xp.sum(residual * step)), size
        direction = step + (size / previous) * direction
    return orthonormalize(backend, orthonormalize(backend, xp.astype(X, xp.float64)))


class _Narrow:
    """The normal equations of `first` (a, r) for a fixed `second` (r, b, columns), in float32."""

    def __init__(self, backend: Backend, folded: Folded, second: DeviceArray) -> None:
        self._xp = xp = backend.xp
        self._second = second
        a, b, _ = folded.weight.shape
        rank, _, columns = second.shape
        metric = xp.astype(folded.metric, xp.float32)
        # C (X (x) I) second, in the order that takes fewer operations.
        self._metric_first = rank * (a + columns) < a * columns
        if self._metric_first:
            metric = xp.permute_dims(xp.reshape(metric, (a * b, a, b)), (0, 2, 1))
            self._rows = xp.reshape(xp.permute_dims(second, (1, 0, 2)), (b * rank, columns))
        self._metric = backend.contiguous(xp.reshape(metric, (-1, a) if self._metric_first else (a * b, a * b)))
        self._slabs = xp.reshape(second, (rank, b * columns))

    def gradient(self, image: DeviceArray) -> DeviceArray:
        """(a, r) from (a, b, columns)."""
        return self._xp.reshape(image, (image.shape[0], -1)) @ self._slabs.T

    def product(self, X: DeviceArray) -> DeviceArray:
        """``C (X (x) I) second``, (a, b, columns)."""
        xp = self._xp
        a, (rank, b, columns) = X.shape[0], self._second.shape
        if self._metric_first:
            spread = xp.reshape(self._metric @ X, (a * b, b * rank)) @ self._rows
        else:
            spread = self._metric @ xp.reshape(X @ self._slabs, (a * b, columns))
        return xp.reshape(spread, (a, b, columns))


def _preconditioner(
    backend: Backend, folded: Folded, slabs: DeviceArray, b: int
) -> Callable[[DeviceArray], DeviceArray]:
    """The inverse of the normal equations of `first`, were the metric the product of its two marginals."""
    xp = backend.xp
    rank = slabs.shape[0]
    parts = xp.reshape(slabs, (rank, b, -1))
    weighted = xp.tensordot(parts, trailing_marginal(backend, folded), axes=((1,), (0,)))
    coupling = xp.reshape(parts, (rank, -1)) @ xp.reshape(xp.permute_dims(weighted, (0, 2, 1)), (rank, -1)).T
    inner, outer = (
        xp.astype(_floored_inverse(backend, G), xp.float32) for G in (leading_marginal(backend, folded), coupling)
    )
    return lambda X: inner @ (inner.T @ X) @ outer @ outer.T


def _floored_inverse(backend: Backend, G: DeviceArray) -> DeviceArray:
    """``R^-1`` with ``R' R`` = G + FLOOR times its mean diagonal; the identity where even that isn't definite."""
    xp = backend.xp
    size = G.shape[0]
    identity = xp.eye(size, dtype=xp.float64, device=backend.device)
    inverse = backend.inverse_cholesky((G + G.T) / 2.0 + FLOOR * float(xp.linalg.trace(G)) / size * identity)
    return identity if inverse is None else inverse
