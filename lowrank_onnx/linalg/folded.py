"""A weight and the second moment of its patches, with the patch's axes folded in two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.precision import accumulation_dtype, prepare
from lowrank_onnx.linalg.weighted import FLOOR, checked_second_moment, transposed_root


@dataclass(frozen=True, slots=True)
class Folded:
    """W with its patch axes folded in two, and the metric in which it is approximated; all of it float64.

    Attributes
    ----------
    weight : (a, b, out), scaled: the original is ``weight * 2**exponent``.
    metric : (a b, a b), the second moment with a floor, scaled to a mean diagonal of 1; None for the plain norm.
    image : (a, b, out), ``metric @ weight``. Only that is asked for once it is known, and the weight's shape: where
        equations give the image at once, any array of that shape stands for the weight.
    energy : ``||W||_C**2`` of the scaled weight.
    scale : of the metric: the second moment that was given is ``metric * scale``.
    """

    weight: DeviceArray
    metric: DeviceArray | None
    image: DeviceArray
    energy: float
    exponent: int
    scale: float

    def threads(self, backend: Backend) -> AbstractContextManager[object]:
        """A context in which as many threads run as suit the products with the metric."""
        a, b, out = self.weight.shape
        return backend.threads_for((a * b, a * b), out)

    def apply(self, backend: Backend, X: DeviceArray) -> DeviceArray:
        """C X, for X (a, b, anything)."""
        if self.metric is None:
            return X
        a, b, columns = X.shape
        return backend.xp.reshape(self.metric @ backend.xp.reshape(X, (a * b, columns)), (a, b, columns))

    def outline(self) -> Folded:
        """Its shape, energy and scale, with nothing of the size of a weight or a metric."""
        empty = np.broadcast_to(np.zeros(()), self.weight.shape)
        return replace(self, weight=empty, metric=None, image=empty)


def lay_out(backend: Backend, W: NDArray[Any], second_moment: NDArray[Any] | None) -> Folded:
    """Bring W (axes of the patch..., out) and its second moment to the device, with all axes of the patch leading.

    Raises
    ------
    FactorizationError
        for a W that isn't finite, and a second moment that isn't one.
    """
    xp, out = backend.xp, W.shape[-1]
    size = math.prod(W.shape[:-1])
    narrow = W.reshape(size, out)
    prepared = prepare(backend, narrow.astype(accumulation_dtype(W.dtype), copy=False))
    weight = xp.reshape(xp.astype(prepared.matrix, xp.float64), (size, 1, out))
    if second_moment is None:
        return _imaged(backend, Folded(weight, None, weight, 0.0, prepared.exponent, 1.0))
    C, scale = checked_second_moment(second_moment, size)
    C[np.diag_indices(size)] += FLOOR
    return _imaged(backend, Folded(weight, backend.to_device(C), weight, 0.0, prepared.exponent, scale))


def fold(backend: Backend, whole: Folded, axes: Sequence[int], order: Sequence[int], a: int) -> Folded:
    """What `lay_out` made, with the axes of the patch, of these sizes, in `order`, of which the first make up `a`."""
    xp = backend.xp
    size, _, out = whole.weight.shape

    def moved(X: DeviceArray) -> DeviceArray:
        ordered = xp.permute_dims(xp.reshape(X, (*axes, out)), (*order, len(axes)))
        return xp.reshape(ordered, (a, size // a, out))

    metric = whole.metric
    if metric is not None and list(order) != sorted(order):
        both = (*order, *(len(axes) + axis for axis in order))
        metric = xp.reshape(xp.permute_dims(xp.reshape(metric, (*axes, *axes)), both), (size, size))
    return replace(whole, weight=moved(whole.weight), metric=metric, image=moved(whole.image))


def _imaged(backend: Backend, folded: Folded) -> Folded:
    image = folded.apply(backend, folded.weight)
    return replace(folded, image=image, energy=float(backend.xp.sum(image * folded.weight)))


def mended(backend: Backend, folded: Folded) -> Folded:
    """The same with a metric that is positive definite, where rounding of the moment had left it indefinite."""
    root = transposed_root(backend, backend.to_host(folded.metric))
    return _imaged(backend, replace(folded, metric=root.T @ root))


def leading_marginal(backend: Backend, folded: Folded) -> DeviceArray:
    """C_a (a, a): the metric averaged over the trailing positions."""
    a, b, _ = folded.weight.shape
    blocks = backend.xp.reshape(folded.metric, (a, b, a, b))
    total = blocks[:, 0, :, 0]
    for position in range(1, b):
        total = total + blocks[:, position, :, position]
    return total / b


def trailing_marginal(backend: Backend, folded: Folded) -> DeviceArray:
    """C_b (b, b): the metric averaged over the leading axes."""
    xp = backend.xp
    a, b, _ = folded.weight.shape
    blocks = xp.reshape(folded.metric, (a, b, a, b))
    total = blocks[0, :, 0, :]
    for index in range(1, a):
        total = total + blocks[index, :, index, :]
    return total / a
