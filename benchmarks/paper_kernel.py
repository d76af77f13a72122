"""The paper's first table: time and error of randomized subspace iteration beside exact SVD (arXiv 2604.02659)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernel_measure import spectral_error
from benchmarks.kernel_solvers import Factors, auto, textbook_rsi
from benchmarks.saved_results import Size, circumstances
from benchmarks.spectra import matrix, slow
from models.export_whisper import read_whisper
from models.fetch import fetch_model
from models.torch_file import read_torch_file

ITERATIONS = (1, 2, 3, 4)
"""The paper's q; 1 is RSVD."""

REPETITIONS = 3
ENOUGH_SECONDS = 3.0
"""A solver that took so long is not run again: what disturbs a machine is short."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix to factorize, made or fetched when it is needed, and the ranks to factorize it at."""

    name: str
    load: Callable[[], Floats]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """One solver: median seconds, and the normalised spectral error ||W - L R||_2 / sigma_(r+1)."""

    solver: str
    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One matrix at one rank."""

    matrix: str
    size: Size
    shape: tuple[int, int]
    rank: int
    exact_seconds: float
    timed: tuple[Timed, ...]
    date: str
    machine: str
    versions: Mapping[str, str]


def matrices(size: Size) -> tuple[Matrix, ...]:
    """The paper's shapes with slow spectra, and real weights of like shapes."""
    if size == "quick":
        return (_slow((256, 1024), (26, 103)), Matrix("whisper-fc1", lambda: _whisper("layer_0/ffn/linear_0"), (103,)))
    return (
        _slow((4096, 25088), (200, 1000)),
        _slow((768, 3072), (77, 154, 308, 615)),
        Matrix("craft-fc6", _craft, (103, 205, 410)),
        Matrix("whisper-fc1", lambda: _whisper("layer_5/ffn/linear_0"), (103, 205)),
        Matrix("whisper-embedding", _whisper_embedding, (103, 205)),
    )


def _slow(shape: tuple[int, int], ranks: tuple[int, ...]) -> Matrix:
    return Matrix("slow-{}x{}".format(*shape), lambda: matrix(shape, slow(min(shape)), seed=1), ranks)


def _whisper(name: str) -> Floats:
    return np.ascontiguousarray(read_whisper()[f"encoder/{name}/weight"], np.float32)


def _whisper_embedding() -> Floats:
    """Wide, as the paper has its matrices."""
    return np.ascontiguousarray(read_whisper()["decoder/embeddings/weight"].T, np.float32)


def _craft() -> Floats:
    """The dilated convolution that stands for VGG's first fully connected layer; (1024, 512 x 3 x 3)."""
    weights = read_torch_file(fetch_model("craft-weights"))
    return np.asarray(weights["module.basenet.slice5.1.weight"].reshape(1024, -1), np.float32)


def measure_kernel(source: Matrix, size: Size) -> Iterator[KernelResult]:
    """Every rank of one matrix. The exact SVD is timed once, and gives the optimal errors for all ranks."""
    W = source.load()
    started = time.perf_counter()
    values = np.linalg.svd(W, full_matrices=False)[1]
    exact_seconds = time.perf_counter() - started
    for rank in source.ranks:
        solvers: dict[str, Callable[[NDArray[Any], int], tuple[Factors, str]]] = {
            **{f"RSI q={q}": textbook_rsi(q) for q in ITERATIONS},
            "this library": auto(),
        }
        timed = tuple(_time(name, solve, W, rank, float(values[rank])) for name, solve in solvers.items())
        shape = (W.shape[0], W.shape[1])
        yield KernelResult(source.name, size, shape, rank, exact_seconds, timed, **circumstances())


def _time(name: str, solve: Callable[[Any, int], tuple[Factors, str]], W: Floats, rank: int, best: float) -> Timed:
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        factors, _detail = solve(W, rank)
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > ENOUGH_SECONDS:
            break
    return Timed(name, float(np.median(seconds)), spectral_error(W, factors) / best)
