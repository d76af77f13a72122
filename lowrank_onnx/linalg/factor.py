"""``factor``: the validated front door of the factorization kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import NUMPY, Backend, DeviceArray, DeviceMemoryError, DeviceName, select_backend
from lowrank_onnx.linalg.exact import column_norms
from lowrank_onnx.linalg.factorization import Factorization
from lowrank_onnx.linalg.precision import Prepared, prepare, squared_norm
from lowrank_onnx.linalg.rank import RankTarget
from lowrank_onnx.linalg.request import FactorRequest, checked_options
from lowrank_onnx.linalg.residual import residual_energy, residual_norm_estimate
from lowrank_onnx.linalg.solution import Triplets
from lowrank_onnx.linalg.solve import Method, solve, solve_for_target
from lowrank_onnx.linalg.weighted import checked_second_moment, weigh

CANCELLING_SHARE = 1e-3
"""Below this share of uncaptured energy, energy minus captured loses digits and the residual itself is measured."""


def factor(
    W: NDArray[Any],
    rank: int | None = None,
    *,
    method: Method = "auto",
    power_iterations: int = 4,
    oversampling: int | None = None,
    tolerance: float = 1.02,
    seed: int = 0,
    device: DeviceName = "auto",
    error: float | None = None,
    energy: float | None = None,
    spectral: float | None = None,
    second_moment: NDArray[Any] | None = None,
) -> Factorization:
    """Low-rank factors ``W ~ left @ right`` of an (in, out) matrix, with their measured errors.

    Parameters
    ----------
    W : (in, out), float16, bfloat16, float32 or float64.
        Any strides; a read-only memory map will do. Accumulated in float32, or float64 for float64.
    rank : from 1 to min(in, out); or else one of `error`, `energy` and `spectral`.
    method :
        - ``"auto"``: the cheapest of the exact and near-exact solvers below, by a cost model, such that the normalised
          spectral error ``||W - left @ right||_2 / sigma_(rank+1)`` is at most `tolerance`. Small singular values that
          squaring would lose are noticed and computed in higher precision or without squaring.
        - ``"krylov"``: block Krylov iteration to `tolerance`; the exact solver where it would need the whole space.
        - ``"chebyshev"``: subspace iteration filtered by Chebyshev polynomials to `tolerance`; likewise.
        - ``"eigen"``: leading eigenvectors of the smaller Gram matrix; exact.
        - ``"svd"``: the full SVD; exact.
        - ``"rsi"``: randomized subspace iteration as published (arXiv 2604.02659), `power_iterations` times, on a
          sketch of rank + `oversampling` columns. The reference: slower than ``"auto"`` and less accurate.
        - ``"rsvd"``: the same with one power iteration.
    power_iterations : q of ``"rsi"``, at least 1; ignored by the others.
    oversampling : p of ``"rsi"`` and ``"rsvd"``, default 0, as published; ignored by the others.
    tolerance : above 1, for ``"auto"``, ``"krylov"`` and ``"chebyshev"``.
    seed : of the Gaussian sketch, drawn on the host: the same seed gives the same bytes on one machine.
    device : "cpu", "cuda" (CuPy), or "auto", which takes CUDA where it is usable. A matrix that is too large for the
        device's memory is factorized on the CPU, and `solver` says so.
    error, energy, spectral :
        instead of `rank`, the smallest rank with ``||W - left @ right||_F / ||W||_F <= error``, with a share of at
        least `energy` of ``||W||_F**2``, or with ``||W - left @ right||_2 / ||W||_2 <= spectral``; in the weighted norm
        where a second moment is given.
    second_moment : (in, in), symmetric positive semidefinite, or (in,), the diagonal of one
        C = X'X of the inputs, any scale: minimises ``||S'(W - left @ right)||_F`` with C = S S' instead. It may be
        singular. The singular values are then those of ``S' left @ right``.

    Raises
    ------
    FactorizationError
        for a matrix that is not 2-D, is empty, holds NaN or infinity or has another dtype, a rank it doesn't have, or
        an option out of range.
    MissingDependencyError
        for "cuda" without CuPy or without a CUDA device.
    """
    options = checked_options(method, power_iterations, oversampling, tolerance, seed)
    target = None
    if rank is None or (error, energy, spectral) != (None, None, None):
        target = RankTarget(error=error, energy=energy, spectral=spectral)
    request = FactorRequest(rank, target, options, second_moment)
    return factor_on(select_backend(device), W, request)


def factor_on(
    backend: Backend, W: NDArray[Any], request: FactorRequest, transfer: Callable[[], DeviceArray] | None = None
) -> Factorization:
    """`factor` on a given backend; on the CPU, and saying so, where the device's memory is too small.

    `transfer` gives W on the device in its accumulation dtype, where it is already on its way.
    """
    request.check_shape(W.shape)
    try:
        with backend.memory_errors():
            return _factor(backend, W, request, transfer)
    except DeviceMemoryError:
        backend.release_memory()
        return _factor(NUMPY, W, request, None).noted("on the CPU: out of device memory")
    finally:
        backend.release_memory()


def _factor(
    backend: Backend, W: NDArray[Any], request: FactorRequest, transfer: Callable[[], DeviceArray] | None
) -> Factorization:
    weight = None
    if request.second_moment is not None:
        weight = checked_second_moment(request.second_moment, W.shape[0])
    prepared = prepare(backend, W, transfer)
    if prepared.energy == 0.0:
        return _zero(backend, prepared, request.rank or 1, weighted=weight is not None)
    seed = request.options.seed
    with backend.threads_for(W.shape, request.rank or min(W.shape)):
        if weight is None:
            triplets, rank = _solve(backend, prepared.matrix, prepared.energy, request)
            return _measure(backend, prepared, triplets, rank, seed)
        C, scale = weight
        weighted = weigh(backend, C, prepared.matrix)
        weighted_energy = squared_norm(backend, weighted)
        triplets, rank = _solve(backend, weighted, weighted_energy, request)
        return _measure_weighted(backend, prepared, weighted, weighted_energy, scale, triplets, rank, seed)


def _solve(backend: Backend, W: DeviceArray, energy: float, request: FactorRequest) -> tuple[Triplets, int]:
    if request.rank is not None:
        return solve(backend, W, request.rank, request.options), request.rank
    assert request.target is not None
    return solve_for_target(backend, W, energy, request.target, request.options)


def _measure(backend: Backend, prepared: Prepared, triplets: Triplets, rank: int, seed: int) -> Factorization:
    """Truncate, measure and balance; undo the scaling of `prepare`."""
    values = triplets.values[:rank]
    scaled_left, directions = triplets.scaled_left[:, :rank], triplets.right[:, :rank]
    spectral, largest = triplets.residual, float(values[0])
    if spectral is None or triplets.residual_rank != rank:
        W = prepared.matrix
        spectral = residual_norm_estimate(backend, W, scaled_left, directions, seed)
        # What leaves its residual unknown may have its values too small as well: one power iteration does.
        largest = max(largest, residual_norm_estimate(backend, W, scaled_left[:, :0], directions[:, :0], seed))
    left, right = _balanced(backend, prepared, scaled_left, directions, values)
    return Factorization(
        left=left,
        right=right,
        singular_values=np.ldexp(backend.to_host(values), prepared.exponent),
        energy=_rescaled(prepared.energy, 2 * prepared.exponent),
        relative_error=_relative_error(backend, prepared.matrix, prepared.energy, scaled_left, directions, values),
        spectral_error=spectral / largest if largest > 0.0 else 0.0,
        solver=triplets.solver,
        spectral_norm=_rescaled(largest, prepared.exponent),
    )


def _measure_weighted(
    backend: Backend,
    prepared: Prepared,
    weighted: DeviceArray,
    weighted_energy: float,
    scale: float,
    triplets: Triplets,
    rank: int,
    seed: int,
) -> Factorization:
    """The factors ``(W V) V'`` from the triplets of ``S' W``, measured in both norms."""
    values, V = triplets.values[:rank], triplets.right[:, :rank]
    W = prepared.matrix
    projected = W @ V
    norms = column_norms(backend, projected)
    left, right = _balanced(backend, prepared, projected, V, norms)
    norm = residual_norm_estimate(backend, W, projected[:, :0], V[:, :0], seed)
    spectral = residual_norm_estimate(backend, W, projected, V, seed)
    weighted_left = triplets.scaled_left[:, :rank]
    return Factorization(
        left=left,
        right=right,
        singular_values=np.ldexp(backend.to_host(values), prepared.exponent) * scale**0.5,
        energy=_rescaled(prepared.energy, 2 * prepared.exponent),
        relative_error=_relative_error(backend, W, prepared.energy, projected, V, norms),
        spectral_error=min(spectral / norm, 1.0),
        solver=f"{triplets.solver}, weighted",
        spectral_norm=_rescaled(norm, prepared.exponent),
        weighted_energy=_rescaled(weighted_energy, 2 * prepared.exponent) * scale,
        weighted_error=_relative_error(backend, weighted, weighted_energy, weighted_left, V, values),
    )


def _balanced(
    backend: Backend, prepared: Prepared, scaled_left: DeviceArray, directions: DeviceArray, norms: DeviceArray
) -> tuple[NDArray[Any], NDArray[Any]]:
    xp = backend.xp
    root = xp.sqrt(norms)
    left = scaled_left / xp.where(root > 0, root, xp.ones_like(root))
    right = (directions * root).T
    dtype = backend.numpy_dtype(left)
    scale = dtype.type(2.0 ** (prepared.exponent / 2))
    return np.ascontiguousarray(backend.to_host(left) * scale), np.ascontiguousarray(backend.to_host(right) * scale)


def _relative_error(
    backend: Backend, W: DeviceArray, energy: float, left: DeviceArray, directions: DeviceArray, norms: DeviceArray
) -> float:
    """``||W - left @ directions'||_F / ||W||_F`` for orthonormal directions, where that product is a projection."""
    xp = backend.xp
    missed = 1.0 - float(xp.sum(xp.astype(norms, xp.float64) ** 2)) / energy
    if missed < CANCELLING_SHARE:
        missed = residual_energy(backend, W, left, directions.T) / energy
    return math.sqrt(max(missed, 0.0))


def _rescaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _zero(backend: Backend, prepared: Prepared, rank: int, *, weighted: bool) -> Factorization:
    dtype = backend.numpy_dtype(prepared.matrix)
    rows, columns = prepared.matrix.shape
    return Factorization(
        left=np.zeros((rows, rank), dtype),
        right=np.zeros((rank, columns), dtype),
        singular_values=np.zeros(rank, dtype),
        energy=0.0,
        relative_error=0.0,
        spectral_error=0.0,
        solver="zero matrix",
        spectral_norm=0.0,
        weighted_energy=0.0 if weighted else None,
        weighted_error=0.0 if weighted else None,
    )
