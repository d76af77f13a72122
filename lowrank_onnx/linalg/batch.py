"""Many matrices, one after the other: the next one travels to the device while this one is factorized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import Backend, DeviceArray, DeviceMemoryError, DeviceName, select_backend
from lowrank_onnx.linalg.factor import factor_on
from lowrank_onnx.linalg.factorization import Factorization
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.linalg.request import FactorRequest

Transfer = Callable[[], DeviceArray]


def factor_each(
    weights: Iterable[NDArray[Any]], requests: Iterable[FactorRequest], *, device: DeviceName = "auto"
) -> Iterator[Factorization]:
    """Factorize matrices in turn, each as its request says; one of each in memory beyond the one at work.

    Reading the next weight (a page-faulting memory map, say) and its copy through page-locked memory overlap the work
    on the current one; on the CPU only the reading does.

    Raises
    ------
    FactorizationError
        as `lowrank_onnx.linalg.factor` does, when the matrix's turn comes.
    MissingDependencyError
        for "cuda" without CuPy or without a CUDA device.
    """
    backend = select_backend(device)
    with ThreadPoolExecutor(1, thread_name_prefix="weight-transfer") as reader:
        pairs = zip(iter(weights), iter(requests), strict=True)
        following = _read(reader, backend, pairs)
        while True:
            current = following.result()
            if current is None:
                return
            following = _read(reader, backend, pairs)
            weight, request, transfer = current
            yield factor_on(backend, weight, request, transfer)


def _read(
    reader: ThreadPoolExecutor, backend: Backend, pairs: Iterator[tuple[NDArray[Any], FactorRequest]]
) -> Future[tuple[NDArray[Any], FactorRequest, Transfer | None] | None]:
    def read() -> tuple[NDArray[Any], FactorRequest, Transfer | None] | None:
        pair = next(pairs, None)
        return None if pair is None else (*pair, _start(backend, pair[0]))

    return reader.submit(read)


def _start(backend: Backend, weight: NDArray[Any]) -> Transfer | None:
    """Begin the transfer; None where the device has no room for it yet, and the matrix is sent when its turn comes."""
    try:
        with backend.memory_errors():
            return backend.start_transfer(weight.astype(accumulation_dtype(weight.dtype), copy=False))
    except DeviceMemoryError:
        return None
