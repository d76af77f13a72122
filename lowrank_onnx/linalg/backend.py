"""Where the arithmetic runs: NumPy, CuPy or any other array API namespace. The only module that imports cupy.

A `Backend` is an array namespace with a device, plus the handful of operations that the array API standard lacks and
that matter for speed: a symmetric product, a triangular solve and the leading part of an eigendecomposition.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import array_api_compat.numpy
import numpy as np
import scipy.linalg
import threadpoolctl
from numpy.typing import NDArray

from lowrank_onnx.errors import MissingDependencyError

DeviceArray: TypeAlias = Any
"""An array of the backend's namespace."""

DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]

SINGLE_THREAD_SIZE = 2048
"""Up to this order LAPACK's eigensolvers run on one thread: their thousands of tiny steps each end in a barrier, which
costs more than it gains, and stalls by orders of magnitude where another process holds one of the cores."""

SINGLE_THREAD_WORK = 3e8
"""Up to this m n r a whole factorization runs on one thread, for the same reason: it takes some 50 ms of small steps."""

DIVIDE_AND_CONQUER_SIZE = 1536
"""Up to this order the full divide and conquer eigensolver is faster than the partial one (MRRR) at any count."""


@functools.cache
def _blas_threads() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def _few_threads(size: int) -> Iterator[None]:
    if size > SINGLE_THREAD_SIZE:
        yield
        return
    with _blas_threads().limit(limits=1, user_api="blas"):
        yield


@dataclass(frozen=True, slots=True)
class Backend:
    """An array API namespace and a device of it. This class alone needs nothing beyond the standard."""

    name: str
    xp: Any
    device: Any = None

    def to_device(self, host: NDArray[Any]) -> DeviceArray:
        """Copy a NumPy array to the device (no copy where it already is there)."""
        return self.xp.asarray(host, device=self.device)

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """The array as a NumPy array."""
        on_cpu = array if self.device is None else self.xp.asarray(array, device=self.xp.Device("CPU_DEVICE"))
        return np.asarray(on_cpu)

    def numpy_dtype(self, array: DeviceArray) -> np.dtype[Any]:
        """The NumPy dtype of a float32 or float64 array of this backend."""
        return np.dtype(np.float64 if array.dtype == self.xp.float64 else np.float32)

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        """The array in a layout that products run fast on; only NumPy cares."""
        return array

    def threads_for(self, shape: tuple[int, ...], rank: int) -> contextlib.AbstractContextManager[object]:
        """The number of threads that suits the factorization of one matrix; only NumPy cares."""
        del shape, rank
        return contextlib.nullcontext()

    def gram(self, A: DeviceArray) -> DeviceArray:
        """``A' A``."""
        return A.T @ A

    def inverse_cholesky(self, G: DeviceArray) -> DeviceArray | None:
        """``R^-1`` for the upper triangular R with ``R' R = G``; None where G isn't numerically positive definite."""
        try:
            inverse = self.xp.linalg.inv(self.xp.linalg.cholesky(G).T)
        except np.linalg.LinAlgError:
            return None
        return inverse if math.isfinite(float(self.xp.sum(inverse))) else None

    def eigh_leading(self, G: DeviceArray, count: int) -> tuple[DeviceArray, DeviceArray]:
        """The `count` largest eigenvalues of a symmetric G, descending, and their eigenvectors as columns."""
        values, vectors = self.xp.linalg.eigh(G)
        return self.xp.flip(values)[:count], self.xp.flip(vectors, axis=1)[:, :count]


@dataclass(frozen=True, slots=True)
class NumpyBackend(Backend):
    """NumPy, with BLAS and LAPACK routines from SciPy where they do less work."""

    def to_device(self, host: NDArray[Any]) -> DeviceArray:
        return np.asarray(host)

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        return np.asarray(array)

    def threads_for(self, shape: tuple[int, ...], rank: int) -> contextlib.AbstractContextManager[object]:
        small = math.prod(shape) * rank <= SINGLE_THREAD_WORK
        return _blas_threads().limit(limits=1, user_api="blas") if small else contextlib.nullcontext()

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        return np.ascontiguousarray(array)

    def gram(self, A: DeviceArray) -> DeviceArray:
        if not A.flags.c_contiguous and not A.flags.f_contiguous:
            return A.T @ A
        syrk = scipy.linalg.blas.dsyrk if A.dtype == np.float64 else scipy.linalg.blas.ssyrk
        upper = syrk(1.0, A.T) if A.flags.c_contiguous else syrk(1.0, A, trans=1)
        return mirror_upper(upper)

    def inverse_cholesky(self, G: DeviceArray) -> DeviceArray | None:
        R, failed = scipy.linalg.lapack.dpotrf(G, lower=0, clean=1)
        if failed:
            return None
        inverse, failed = scipy.linalg.lapack.dtrtri(R, lower=0)
        return None if failed else inverse

    def eigh_leading(self, G: DeviceArray, count: int) -> tuple[DeviceArray, DeviceArray]:
        size = G.shape[0]
        with _few_threads(size):
            if size <= DIVIDE_AND_CONQUER_SIZE or 3 * count > 2 * size:
                values, vectors = scipy.linalg.eigh(G, driver="evd", check_finite=False)
            else:
                values, vectors = scipy.linalg.eigh(
                    G, driver="evr", subset_by_index=(size - count, size - 1), check_finite=False
                )
        return values[::-1][:count], vectors[:, ::-1][:, :count]


def mirror_upper(upper: NDArray[Any], tile: int = 256) -> NDArray[Any]:
    """Fill the lower triangle of a square matrix from the upper one, in place, tile by tile to stay in cache."""
    size = upper.shape[0]
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        upper[stop:, start:stop] = upper[start:stop, stop:].T
        corner = upper[start:stop, start:stop]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T
    return upper


NUMPY = NumpyBackend("numpy", array_api_compat.numpy)


def select_backend(device: DeviceName) -> Backend:
    """The backend for ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where CuPy is installed and sees a device.

    Raises
    ------
    MissingDependencyError
        for ``"cuda"`` without CuPy or without a usable CUDA device.
    """
    if device == "cpu":
        return NUMPY
    problem = _cuda_problem()
    if problem is None:
        return _cupy_backend()
    if device == "cuda":
        raise MissingDependencyError(f"device 'cuda': {problem}; or use device 'cpu'")
    return NUMPY


def _cuda_problem() -> str | None:
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed: install lowrank-onnx[cuda12] or lowrank-onnx[cuda13], as your driver asks for"
    if not cupy.cuda.is_available():
        return "CuPy is installed but sees no CUDA device: check the driver with nvidia-smi"
    return None


def _cupy_backend() -> Backend:
    import array_api_compat.cupy

    return CupyBackend("cupy", array_api_compat.cupy)


@dataclass(frozen=True, slots=True)
class CupyBackend(Backend):
    """CuPy on the current CUDA device."""

    def to_device(self, host: NDArray[Any]) -> DeviceArray:
        return self.xp.asarray(host)

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        import cupy

        host: NDArray[Any] = cupy.asnumpy(array)
        return host
