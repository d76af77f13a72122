from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_strict
import numpy as np
import pytest
import threadpoolctl
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import NUMPY, Backend, select_backend


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Matrices this small are only slowed down by threads, by orders of magnitude where a core is taken."""
    with threadpoolctl.threadpool_limits(1, "blas"):
        yield


class StrictBackend(Backend):
    """A device that no array leaves or enters silently, on any machine: the double of a GPU."""

    def to_host(self, array: Any) -> NDArray[Any]:
        return np.asarray(array_api_strict.asarray(array, device=array_api_strict.Device("CPU_DEVICE")))


STRICT = StrictBackend("strict", array_api_strict, array_api_strict.Device("device1"))


@pytest.fixture(params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen = {"numpy": NUMPY, "strict": STRICT}.get(request.param)
    return chosen if chosen is not None else select_backend("cuda")


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The array, such that hidden mutation raises."""
    array.flags.writeable = False
    return array
