"""Regression with a pull whose coefficients are a chain: a leading factor on some axes of a patch, and what follows.

The pair's problem of `lowrank_onnx.linalg.ridge`, ``||X A - T||_F**2 + l ||A - W||_F**2``, for the A of
`lowrank_onnx.linalg.leading`: with ``H = X'X + l I`` and M the solution of full rank it is ``||A - M||_H**2`` and a
constant. All that the fit of a chain asks of M is ``H M = X'T + l W``, so M is never formed.

With a leading factor F of orthonormal columns, what follows solves the same problem on the inputs that F leaves, X
times ``F (x) I``, pulled to what F leaves of W. These equations are small, and serve every pull.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceName, select_backend
from lowrank_onnx.linalg.folded import Folded
from lowrank_onnx.linalg.leading import LeadingFamily, family_on
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.linalg.ridge import check_pull

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PulledLeading:
    """The problem on its device, the patch's axes folded to a, which the leading factor contracts, and b.

    Attributes
    ----------
    gram : (a b, a b) float64, X'X.
    cross : (a, b, out) float64, X'T.
    towards : (a, b, out) float64, W.
    energy : ``||T||_F**2``, in the scale of the others.
    constant : the part of ``||W||_F**2`` that the leading factor can't reach; 0 where it isn't fixed.
    dtype : of the factors.
    """

    backend: Backend
    gram: DeviceArray
    cross: DeviceArray
    towards: DeviceArray
    energy: float
    constant: float
    dtype: np.dtype[Any]

    def family(self, pull: float, first: DeviceArray | None = None) -> LeadingFamily:
        """The chains that begin with the columns of an orthonormal `first` (a, r), None for the identity, for a pull.

        Their errors are the loss relative to that of A = 0.

        Raises
        ------
        FactorizationError
            for a pull that isn't above 0, or where ``X'X + l I`` isn't numerically positive definite.
        """
        check_pull(pull)
        with self._threads():
            return self._family(pull, first)

    def _family(self, pull: float, first: DeviceArray | None) -> LeadingFamily:
        backend, xp = self.backend, self.backend.xp
        metric = backend.shifted(self.gram, pull)
        energy = self.energy + pull * (self.constant + float(xp.sum(self.towards**2)))
        folded = Folded(self.towards, metric, self.cross + pull * self.towards, energy, 0, 1.0)
        try:
            return family_on(
                backend, folded, self._identity(self.towards.shape[0]) if first is None else first, self.dtype
            )
        except np.linalg.LinAlgError as error:
            raise FactorizationError(
                f"normal equations with a pull of {pull:.3g} are singular: give a larger one"
            ) from error

    def behind(self, first: DeviceArray) -> PulledLeading:
        """The problem of what follows an orthonormal leading factor (a, r); its own leading factor is the identity."""
        xp = self.backend.xp
        a, b, out = self.towards.shape
        rank = first.shape[1]
        half = xp.reshape(first.T @ xp.reshape(self.gram, (a, b * a * b)), (rank * b, a, b))
        gram = xp.reshape(
            xp.permute_dims(xp.tensordot(half, first, axes=((1,), (0,))), (0, 2, 1)), (rank * b, rank * b)
        )
        cross, towards = (
            xp.reshape(first.T @ xp.reshape(part, (a, b * out)), (rank, b, out)) for part in (self.cross, self.towards)
        )
        lost = float(xp.sum(self.towards**2) - xp.sum(towards**2))
        constant = self.constant + max(lost, 0.0)
        return PulledLeading(self.backend, (gram + gram.T) / 2.0, cross, towards, self.energy, constant, self.dtype)

    def orthonormal(self, first: NDArray[Any]) -> DeviceArray:
        """The basis of a leading factor's columns (a, r), on the device."""
        with self._threads():
            return self.backend.xp.linalg.qr(self.backend.to_device(first.astype(np.float64)))[0]

    def _threads(self) -> AbstractContextManager[object]:
        return self.backend.threads_for(self.gram.shape, self.cross.shape[2])

    def _identity(self, size: int) -> DeviceArray:
        return self.backend.to_device(np.eye(size))


def pulled_leading(
    gram: Doubles, cross: Doubles, towards: NDArray[Any], energy: float, leading: tuple[int, ...], device: DeviceName
) -> PulledLeading:
    """Set up the problem on a device.

    Parameters
    ----------
    gram : (in, in), ``X'X``, symmetric positive semidefinite, of any rank; in = the product of a patch's axes.
    cross : (in, out), ``X'T``.
    towards : (axes of the patch..., out) of any floating dtype, W; the factors get its accumulation dtype.
    energy : ``||T||_F**2``.
    leading : the axes of the patch that the leading factor contracts, ascending.
    device : as for `lowrank_onnx.linalg.factor`.

    Raises
    ------
    FactorizationError
        for shapes that don't go together, or values that aren't finite.
    """
    *axes, out = towards.shape
    size = math.prod(axes)
    if gram.shape != (size, size) or cross.shape != (size, out):
        raise FactorizationError(
            f"normal equations of shapes {gram.shape} and {cross.shape} for coefficients of {towards.shape}: "
            "expected (in, in), (in, out) and (axes of in..., out)"
        )
    if not all(np.isfinite(part).all() for part in (gram, cross, towards)):
        raise FactorizationError("normal equations with NaN or infinite entries: expected finite; check the feeds")
    return pulled_leading_on(select_backend(device), gram, cross, towards, energy, leading)


def pulled_leading_on(
    backend: Backend, gram: Doubles, cross: Doubles, towards: NDArray[Any], energy: float, leading: tuple[int, ...]
) -> PulledLeading:
    """`pulled_leading` on a given backend, without its checks."""
    *axes, out = towards.shape
    size = math.prod(axes)
    order = (*leading, *(axis for axis in range(len(axes)) if axis not in leading))
    a = math.prod(axes[axis] for axis in leading)
    both = (*order, *(len(axes) + axis for axis in order))
    permuted = gram.reshape(*axes, *axes).transpose(both).reshape(size, size)

    def fold(part: NDArray[Any]) -> DeviceArray:
        moved = part.astype(np.float64, copy=False).reshape(*axes, out).transpose(*order, len(axes))
        return backend.to_device(np.ascontiguousarray(moved.reshape(a, size // a, out)))

    G = backend.to_device(np.ascontiguousarray(permuted))
    return PulledLeading(backend, G, fold(cross), fold(towards), energy, 0.0, accumulation_dtype(towards.dtype))
