"""A leading factor: ``W[(a, b), o] ~ sum_s first[a, s] second[s, b, o]`` in the metric of a second moment.

A convolution's patch has several axes, channels and kernel positions. A leading factor contracts some of them, `a`, and
leaves the others, `b`, to what follows: channels and one kernel axis for a convolution that is split along space,
channels alone for one that begins with a 1x1 convolution. With C the second moment of the patches, what counts is
``||W - W'||_C**2 = trace((W - W')' C (W - W'))``.

Exact: given `first`, the best `second` is a linear least-squares problem. With ``Phi = first (x) I_b``, ``H = Phi' C
Phi = R' R`` and ``Y = R'^-1 Phi' C W`` it is ``R^-1 Y``, and captures the energy ``||Y||_F**2``. R is triangular, so
the first rows of Y belong to the first columns of `first`: one decomposition gives the optimum and its error for every
leading part of `first`. Without a second moment, `first` is the basis of the SVD and the whole is the optimum.

Not exact, where there is a second moment: `first` itself, for which no closed form is known. It starts from the SVD in
the metric ``C_a (x) I``, C_a being C averaged over the positions b (the optimum where C is that product), and
`LeadingFamily.factors` improves it by alternating least squares in the metric of C, kept only while it gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceName, select_backend
from lowrank_onnx.linalg.folded import Folded, fold, lay_out, leading_marginal, mended
from lowrank_onnx.linalg.orthonormal import orthonormalize
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.linalg.refit import refit
from lowrank_onnx.linalg.solve import SolverOptions, solve
from lowrank_onnx.linalg.weighted import transposed_root

LEAST_GAIN = 1e-3
"""Relative gain in squared error below which another sweep isn't worth its time."""


@dataclass(frozen=True, slots=True)
class LeadingFactors:
    """Two factors, balanced: column s of `first` and slab s of `second` have the same norm.

    Attributes
    ----------
    first : (a, r), in the accumulation dtype of W.
    second : (r, b, out), in the same dtype.
    error : ``||W - W'||_C**2 / ||W||_C**2`` before rounding to that dtype.
    """

    first: NDArray[Any]
    second: NDArray[Any]
    error: float


@dataclass(frozen=True, slots=True)
class Projection:
    """Everything that follows from the leading factor `first` (a, R), orthonormal; see the module's docstring.

    Attributes
    ----------
    root : (R b, R b), the upper triangular R; None for the identity.
    captured : (R b, out), Y; its squared row sums are the captured energy of each direction and position.
    """

    first: DeviceArray
    root: DeviceArray | None
    captured: DeviceArray

    def leading(self, rank: int) -> Projection:
        """That of the first `rank` columns of `first`."""
        rows = rank * (self.captured.shape[0] // self.first.shape[1])
        root = None if self.root is None else self.root[:rows, :rows]
        return Projection(self.first[:, :rank], root, self.captured[:rows, :])

    def solution(self, backend: Backend, captured: DeviceArray) -> DeviceArray:
        """``R^-1 captured``: with Y, the best `second`, (R b, out)."""
        return captured if self.root is None else backend.solve_upper(self.root, captured, transposed=False)


@dataclass(frozen=True, slots=True)
class LeadingFamily:
    """The approximations of one W at every number of columns of its leading factor. Made by `fit_leading`.

    Attributes
    ----------
    errors : (R,), the relative squared error ``||W - W'||_C**2 / ||W||_C**2`` of the first 1, 2, ... R columns, each
        with its exact best `second`.
    energy : ``||W||_C**2`` in the scale of the W and the second moment that were given; `folded.energy` otherwise.
    """

    backend: Backend
    folded: Folded
    projection: Projection
    dtype: np.dtype[Any]
    errors: NDArray[np.float64]

    @property
    def energy(self) -> float:
        """``||W||_C**2``, in the units of the weight and the moment that were given."""
        return math.ldexp(self.folded.energy * self.folded.scale, 2 * self.folded.exponent)

    @property
    def first(self) -> NDArray[np.float64]:
        """(a, R), the orthonormal leading factor on the host."""
        return self.backend.to_host(self.projection.first)

    @property
    def largest_rank(self) -> int:
        """The largest rank that `factors` can give."""
        return int(self.errors.size)

    def factors(self, rank: int, *, sweeps: int = 0) -> LeadingFactors:
        """The factors at `rank`, after at most so many sweeps of alternating least squares (none without a metric).

        Raises
        ------
        FactorizationError
            for a rank that is not from 1 to `largest_rank`.
        """
        if not 1 <= rank <= self.largest_rank:
            raise FactorizationError(f"rank {rank}: expected 1 to {self.largest_rank}, the largest that was asked for")
        with self.folded.threads(self.backend):
            return self._factors(rank, sweeps)

    def _factors(self, rank: int, sweeps: int) -> LeadingFactors:
        projection, error = self.projection.leading(rank), float(self.errors[rank - 1])
        for _ in range(sweeps if self.folded.metric is not None else 0):
            second = projection.solution(self.backend, projection.captured)
            improved = project(self.backend, self.folded, refit(self.backend, self.folded, projection.first, second))
            found = missed_energy(self.backend, self.folded, improved.captured)
            if found >= error * (1.0 - LEAST_GAIN):
                break
            projection, error = improved, found
        second = self.backend.to_host(projection.solution(self.backend, projection.captured))
        slabs = second.reshape(rank, *self.folded.weight.shape[1:])
        norms = np.linalg.norm(second.reshape(rank, -1), axis=1)
        share = np.sqrt(np.where(norms > 0.0, norms, 1.0)) * 2.0 ** (self.folded.exponent / 2)
        first = self.backend.to_host(projection.first) * share
        second = slabs * (2.0**self.folded.exponent / share)[:, None, None]
        return LeadingFactors(first.astype(self.dtype), second.astype(self.dtype), error)


@dataclass(frozen=True, slots=True)
class PatchProblem:
    """W and the second moment of its patches on their device, for fits on any of the patch's axes: `patch_problem`.

    Attributes
    ----------
    axes : the sizes of the patch's axes.
    whole : all of them leading.
    dtype : the accumulation dtype of W.
    """

    backend: Backend
    axes: tuple[int, ...]
    whole: Folded
    dtype: np.dtype[Any]

    def fit(self, leading: Sequence[int], largest_rank: int, *, first: NDArray[Any] | None = None) -> LeadingFamily:
        """`fit_leading` for this problem."""
        count = len(self.axes)
        if not leading or sorted(set(leading)) != list(leading) or not set(leading) <= set(range(count)):
            raise FactorizationError(f"leading axes {list(leading)}: expected some of 0 to {count - 1}, ascending")
        order = (*leading, *(axis for axis in range(count) if axis not in leading))
        size, _, out = self.whole.weight.shape
        a = math.prod(self.axes[axis] for axis in leading)
        most = min(a, size // max(a, 1) * out)
        if not 1 <= largest_rank <= most:
            raise FactorizationError(f"rank {largest_rank}: expected 1 to {most}, the smaller side of the unfolding")
        backend = self.backend
        with self.whole.threads(backend):
            folded = fold(backend, self.whole, self.axes, order, a)
            if first is None:
                basis = _starting_basis(backend, folded, largest_rank, self.dtype)
            else:
                basis = backend.to_device(first[:, :largest_rank])
            try:
                projection = project(backend, folded, basis)
            except np.linalg.LinAlgError:
                folded = mended(backend, folded)
                projection = project(backend, folded, basis)
            return _family(backend, folded, projection, self.dtype)


def patch_problem(backend: Backend, W: NDArray[Any], second_moment: NDArray[Any] | None) -> PatchProblem:
    """What fits of one W on different axes have in common; for the parameters and errors, see `fit_leading`."""
    if W.ndim < 2:
        raise FactorizationError(f"a weight of shape {W.shape}: expected the axes of a patch, and the outputs")
    with backend.threads_for((W.size // max(W.shape[-1], 1),) * 2, W.shape[-1]):
        return PatchProblem(backend, W.shape[:-1], lay_out(backend, W, second_moment), accumulation_dtype(W.dtype))


def fit_leading(
    W: NDArray[Any],
    leading: Sequence[int],
    largest_rank: int,
    *,
    second_moment: NDArray[Any] | None = None,
    device: DeviceName = "auto",
    first: NDArray[Any] | None = None,
) -> LeadingFamily:
    """Fit a leading factor on some axes of a patch, for every rank up to `largest_rank`.

    Parameters
    ----------
    W : (axes of the patch..., out), e.g. (channels, kernel height, kernel width, out); any floating dtype.
    leading : the axes of the patch that the first factor contracts, ascending.
    largest_rank : from 1 to the smaller of the product of those axes and the rest of W.
    second_moment : (in, in) with in = all axes of the patch in W's order: C = X'X of the patches, any scale; it may be
        singular. None for the plain norm.
    device : as for `lowrank_onnx.linalg.factor`.
    first : (a, at least `largest_rank`), the `LeadingFamily.first` of an earlier fit of the same problem, which is then
        not sought again: its first columns are that of every smaller rank.

    Raises
    ------
    FactorizationError
        for axes that W doesn't have, a rank out of range, and what `lowrank_onnx.linalg.factor` refuses.
    MissingDependencyError
        for "cuda" without CuPy or without a CUDA device.
    """
    return patch_problem(select_backend(device), W, second_moment).fit(leading, largest_rank, first=first)


def family_on(backend: Backend, folded: Folded, first: DeviceArray, dtype: np.dtype[Any]) -> LeadingFamily:
    """The family of a known orthonormal leading factor (a, R), for a problem on its device.

    Raises
    ------
    numpy.linalg.LinAlgError
        where the metric isn't positive definite.
    """
    return _family(backend, folded, project(backend, folded, first), dtype)


def _family(backend: Backend, folded: Folded, projection: Projection, dtype: np.dtype[Any]) -> LeadingFamily:
    return LeadingFamily(backend, folded, projection, dtype, _errors(backend, folded, projection))


def _starting_basis(backend: Backend, folded: Folded, rank: int, dtype: np.dtype[Any]) -> DeviceArray:
    """(a, rank), orthonormal: the leading factor that is best in the metric ``C_a (x) I``, found in `dtype`."""
    xp = backend.xp
    a, b, out = folded.weight.shape
    if folded.energy == 0.0:
        return backend.to_device(np.eye(a, rank))
    unfolded = xp.reshape(folded.weight, (a, b * out))
    weighted = unfolded
    if folded.metric is not None:
        weighted = transposed_root(backend, backend.to_host(leading_marginal(backend, folded))) @ unfolded
    narrow = xp.astype(weighted, getattr(xp, dtype.name), copy=False)
    directions = solve(backend, narrow, rank, SolverOptions()).right[:, :rank]
    # Twice, to be orthonormal down to rounding.
    return orthonormalize(backend, orthonormalize(backend, unfolded @ xp.astype(directions, xp.float64, copy=False)))


def project(backend: Backend, folded: Folded, first: DeviceArray) -> Projection:
    """The exact least-squares solution behind the orthonormal leading factor `first` (a, r).

    Raises
    ------
    numpy.linalg.LinAlgError
        where the metric isn't positive definite.
    """
    xp = backend.xp
    a, b, out = folded.weight.shape
    rank = first.shape[1]
    target = xp.reshape(xp.tensordot(first, folded.image, axes=((0,), (0,))), (rank * b, out))
    if folded.metric is None:
        return Projection(first, None, target)
    half = xp.tensordot(first, xp.reshape(folded.metric, (a, b, a, b)), axes=((0,), (0,)))
    H = xp.permute_dims(xp.tensordot(half, first, axes=((2,), (0,))), (0, 1, 3, 2))
    H = xp.reshape(H, (rank * b, rank * b))
    root = backend.cholesky_upper((H + H.T) / 2.0)
    if root is None:
        raise np.linalg.LinAlgError("the metric isn't positive definite")
    captured = backend.solve_upper(root, target, transposed=True)
    if not math.isfinite(float(xp.sum(captured))):
        raise np.linalg.LinAlgError("the metric isn't positive definite")
    return Projection(first, root, captured)


def missed_energy(backend: Backend, folded: Folded, captured: DeviceArray) -> float:
    """``||W - W'||_C**2 / ||W||_C**2`` from what was captured; 0 for a zero weight."""
    if folded.energy == 0.0:
        return 0.0
    return max(0.0, 1.0 - float(backend.xp.sum(captured * captured)) / folded.energy)


def _errors(backend: Backend, folded: Folded, projection: Projection) -> NDArray[np.float64]:
    rank = projection.first.shape[1]
    if folded.energy == 0.0:
        return np.zeros(rank)
    Y = backend.to_host(backend.xp.sum(projection.captured**2, axis=1))
    shares = np.cumsum(Y.reshape(rank, -1).sum(axis=1)) / folded.energy
    errors: NDArray[np.float64] = np.clip(1.0 - shares, 0.0, None)
    return errors
