"""Where the arithmetic runs: NumPy, CuPy or any other array API namespace. The only module that imports cupy.

A `Backend` is an array namespace with a device, plus the few operations that the array API standard lacks and that
matter for speed: symmetric products, Cholesky factors that may fail, leading eigenvectors, transfers ahead of time.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import MissingDependencyError, how_to_install
from lowrank_onnx.linalg import lapack

DeviceArray: TypeAlias = Any
"""An array of the backend's namespace."""

DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]

CACHED_ENTRIES = 4_000_000
"""Of a matrix that stays in the last level of cache, roughly. Of a larger one BLAS reads contiguous columns faster as
the right-hand factor: times 64 columns, 4096 x 4096 takes 0.72 of the time and 4096 x 25088 0.92, a small one 1.2."""


class DeviceMemoryError(Exception):
    """The device can't hold what was asked for; the same work fits on the host."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An array API namespace and a device of it. This class alone needs nothing beyond the standard."""

    name: str
    xp: Any
    device: Any = None

    def to_device(self, host: NDArray[Any]) -> DeviceArray:
        """Copy a NumPy array to the device (no copy where it already is there)."""
        return self.xp.asarray(host, device=self.device)

    def start_transfer(self, host: NDArray[Any]) -> Callable[[], DeviceArray]:
        """Begin to copy a NumPy array to the device; the result waits for it and gives the array."""
        return lambda: self.to_device(host)

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """The array as a NumPy array."""
        return np.asarray(array)

    def memory_errors(self) -> contextlib.AbstractContextManager[None]:
        """Within it, an exhausted device raises `DeviceMemoryError`."""
        return contextlib.nullcontext()

    def release_memory(self) -> None:
        """Hand memory that the backend keeps for reuse back to the device."""

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

    def product(self, A: DeviceArray, X: DeviceArray) -> DeviceArray:
        """``A X`` for an X of few columns; NumPy takes the transposes where that reads a large A faster."""
        return A @ X

    def gram(self, A: DeviceArray) -> DeviceArray:
        """``A' A``; NumPy computes one triangle of such a product and mirrors it."""
        return A.T @ A

    def shifted(self, G: DeviceArray, shift: float) -> DeviceArray:
        """``G + shift * I`` for a square G; NumPy touches the diagonal only."""
        return G + shift * self.xp.eye(G.shape[0], dtype=G.dtype, device=self.device)

    def cholesky_upper(self, G: DeviceArray) -> DeviceArray | None:
        """The upper triangular R with ``R' R = G``; None where G isn't numerically positive definite."""
        try:
            R = self.xp.linalg.cholesky(G).T
        except np.linalg.LinAlgError:
            return None
        return R if math.isfinite(float(self.xp.sum(R))) else None

    def inverse_cholesky(self, G: DeviceArray) -> DeviceArray | None:
        """``R^-1`` for the upper triangular R with ``R' R = G``; None where G isn't numerically positive definite."""
        R = self.cholesky_upper(G)
        if R is None:
            return None
        inverse = self.xp.linalg.inv(R)
        return inverse if math.isfinite(float(self.xp.sum(inverse))) else None

    def solve_upper(self, R: DeviceArray, B: DeviceArray, *, transposed: bool) -> DeviceArray:
        """``R^-1 B``, or ``R'^-1 B``, for an upper triangular R."""
        return self.xp.linalg.solve(R.T if transposed else R, B)

    def eigenvalues(self, G: DeviceArray) -> NDArray[Any]:
        """All eigenvalues of a symmetric G, descending, on the host."""
        return self.to_host(self.xp.linalg.eigvalsh(G))[::-1]

    def eigh_leading(self, G: DeviceArray, count: int) -> tuple[DeviceArray, DeviceArray]:
        """The `count` largest eigenvalues of a symmetric G, descending, and their eigenvectors as columns."""
        values, vectors = self.xp.linalg.eigh(G)
        return self.xp.flip(values)[:count], self.xp.flip(vectors, axis=1)[:, :count]


@dataclass(frozen=True, slots=True)
class NumpyBackend(Backend):
    """NumPy, with BLAS and LAPACK routines from SciPy where they do less work."""

    def to_device(self, host: NDArray[Any]) -> DeviceArray:  # noqa: D102
        return np.asarray(host)

    def contiguous(self, array: DeviceArray) -> DeviceArray:  # noqa: D102
        return np.ascontiguousarray(array)

    def threads_for(self, shape: tuple[int, ...], rank: int) -> contextlib.AbstractContextManager[object]:  # noqa: D102
        return lapack.threads_for_work(math.prod(shape) * rank)

    def product(self, A: DeviceArray, X: DeviceArray) -> DeviceArray:  # noqa: D102
        return (X.T @ A.T).T if A.size > CACHED_ENTRIES and A.flags.f_contiguous else A @ X

    def shifted(self, G: DeviceArray, shift: float) -> DeviceArray:  # noqa: D102
        moved = G.copy()
        moved.reshape(-1)[:: len(G) + 1] += shift
        return moved

    def cholesky_upper(self, G: DeviceArray) -> DeviceArray | None:  # noqa: D102
        return lapack.cholesky_upper(G)

    def inverse_cholesky(self, G: DeviceArray) -> DeviceArray | None:  # noqa: D102
        return lapack.inverse_cholesky(G)

    def solve_upper(self, R: DeviceArray, B: DeviceArray, *, transposed: bool) -> DeviceArray:  # noqa: D102
        return lapack.solve_upper(R, B, transposed)

    def eigenvalues(self, G: DeviceArray) -> NDArray[Any]:  # noqa: D102
        return lapack.eigenvalues(G)

    def eigh_leading(self, G: DeviceArray, count: int) -> tuple[DeviceArray, DeviceArray]:  # noqa: D102
        return lapack.eigh_leading(G, count)


NUMPY = NumpyBackend("numpy", array_api_compat.numpy)


@dataclass(frozen=True, slots=True)
class CupyBackend(Backend):
    """CuPy on the current CUDA device.

    float32 products stay float32: CuPy uses TF32 only where the environment asks for it (``CUPY_TF32=1``).
    """

    def to_device(self, host: NDArray[Any]) -> DeviceArray:  # noqa: D102
        return self.start_transfer(host)()

    def start_transfer(self, host: NDArray[Any]) -> Callable[[], DeviceArray]:
        """Copy through page-locked memory on a stream of its own, so that it overlaps what the device computes."""
        import cupy
        import cupyx

        pinned = cupyx.empty_pinned(host.shape, host.dtype)
        np.copyto(pinned, host)
        array = cupy.empty(host.shape, host.dtype)
        stream = cupy.cuda.Stream(non_blocking=True)
        # The block may have been used by work queued on the current stream: the copy must come after that.
        stream.wait_event(cupy.cuda.get_current_stream().record())
        array.set(pinned, stream=stream)

        def arrive() -> DeviceArray:
            stream.synchronize()
            # `pinned` lives until here: the copy reads it.
            return array if pinned.size == array.size else None

        return arrive

    def to_host(self, array: DeviceArray) -> NDArray[Any]:  # noqa: D102
        import cupy

        host: NDArray[Any] = cupy.asnumpy(array)
        return host

    @contextlib.contextmanager
    def memory_errors(self) -> Iterator[None]:  # noqa: D102
        import cupy

        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceMemoryError(str(error)) from error

    def release_memory(self) -> None:  # noqa: D102
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()

    def cholesky_upper(self, G: DeviceArray) -> DeviceArray | None:  # noqa: D102
        import cupyx

        # Unless asked to raise, CuPy hands back what cuSOLVER left of a matrix that isn't positive definite.
        with cupyx.errstate(linalg="raise"):
            return Backend.cholesky_upper(self, G)

    def solve_upper(self, R: DeviceArray, B: DeviceArray, *, transposed: bool) -> DeviceArray:  # noqa: D102
        import cupyx.scipy.linalg

        return cupyx.scipy.linalg.solve_triangular(R, B, trans=int(transposed))


def select_backend(device: DeviceName) -> Backend:
    """The backend for ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where CuPy is installed and sees a device.

    Raises
    ------
    MissingDependencyError
        for ``"cuda"`` without CuPy or without a usable CUDA device.
    """
    if device == "cpu":
        return NUMPY
    problem = cuda_problem()
    if problem is None:
        import array_api_compat.cupy

        return CupyBackend("cupy", array_api_compat.cupy)
    if device == "cuda":
        raise MissingDependencyError(f"device 'cuda': {problem}; or use device 'cpu'")
    return NUMPY


def cuda_problem() -> str | None:
    """Why CUDA can't be used, and what to do about it; None where it can."""
    try:
        import cupy
    except ImportError:
        return f"CuPy is not installed: {_HOW_TO_INSTALL}; cuda13 for a driver of CUDA 13"
    if not cupy.cuda.is_available():
        return "CuPy is installed but sees no CUDA device: check the driver with nvidia-smi"
    return _library_problem()


_HOW_TO_INSTALL = how_to_install("cuda12", "'cupy-cuda12x[ctk]'")


@functools.cache
def _library_problem() -> str | None:
    """Which of CUDA's libraries CuPy can't load, and what to do about it; None where it has those that are used."""
    import cupy

    try:
        import cupyx.scipy.linalg

        identity = cupy.eye(2, dtype=cupy.float32)
        cupyx.scipy.linalg.solve_triangular(cupy.linalg.cholesky(identity + identity), identity)  # a kernel of its own
        cupy.linalg.svd(identity @ identity)
    except Exception as error:  # the loader's, the compiler's and those of each library have no common base below it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"CuPy can't use the device ({reason}): {_HOW_TO_INSTALL} brings CUDA's libraries, cuda13 likewise"
    return None
