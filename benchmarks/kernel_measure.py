"""The measurements of the kernel benchmark: each solver's time and errors on one matrix at one rank."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

SPECTRA = ("slow", "exponential", "step", "trained")
PAPER_SHAPE = (4096, 25088)
PAPER_RANKS = (200, 1000)
"""Of the shapes whose smaller side is at least 2048; the quarter of 4096 is left to r = 1000."""

LARGE = 2048 * 2048
"""Entries from which on the textbook algorithm runs on one spectrum only."""

LOOSE_TOLERANCE = 1.3
"""About what the paper's algorithm reaches with q = 2 on the slow spectrum: asked of `auto` too, for its table."""

MOST_ITERATIONS = 20
PEER_ERROR = 1.05


@dataclass(slots=True)
class Run:
    """One solver on one case: the median time of its repetitions, and its errors (Frobenius not always)."""

    solver: str
    detail: str
    seconds: float
    spectral: float
    frobenius: float | None
    repetitions: int = 1


@dataclass(slots=True)
class Case:
    """One matrix at one rank. Errors are relative to the best possible at that rank."""

    rows: int
    columns: int
    rank: int
    spectrum: str
    gemm_rate: float
    floor_seconds: float
    runs: list[Run] = field(default_factory=list)

    def run(self, solver: str) -> Run | None:
        """The run of a solver, if there was one."""
        return next((run for run in self.runs if run.solver == solver), None)


def measure(arguments: argparse.Namespace, clock: Callable[[], float], done: list[Case]) -> Iterator[Case]:
    """Every case that isn't done yet."""
    import numpy as np

    from benchmarks.spectra import matrix

    done = list(done)
    for shape in arguments.shapes:
        for spectrum in arguments.spectra:
            values = named_values(spectrum, min(shape))
            known = {case.rank for case in done if (case.rows, case.columns, case.spectrum) == (*shape, spectrum)}
            ranks = [r for r in arguments.ranks or ranks_for(shape, quick=arguments.quick) if r not in known]
            W = matrix(shape, values, seed=1) if ranks else np.empty((0, 0), np.float32)
            assert W.dtype == np.float32
            for rank in ranks:
                case = _measure_case(W, values, rank, spectrum, arguments, clock, done)
                done.append(case)
                yield case


def _measure_case(
    W: Any,
    values: Any,
    rank: int,
    spectrum: str,
    arguments: argparse.Namespace,
    clock: Callable[[], float],
    done: list[Case],
) -> Case:
    from benchmarks.kernel_solvers import Peer, auto, peers, solve_exact, solve_svds, textbook_rsi

    m, n = W.shape
    k = min(m, n)
    rate = gemm_rate(clock)
    case = Case(m, n, rank, spectrum, rate, (min(m * n * k, 2 * m * n * rank) + 2 * m * n * rank) / rate)
    solvers: dict[str, Any] = {"auto": auto()}
    papers = W.shape == PAPER_SHAPE and rank in PAPER_RANKS and spectrum == SPECTRA[0]
    if m * n < LARGE or (spectrum == SPECTRA[0] and rank <= max(PAPER_RANKS) and not papers):
        solvers["rsi"] = textbook_rsi(4)
    for peer in () if arguments.no_peers else peers():
        guess = iterations_before(peer.name, done, case)

        def reaches(iterations: int, peer: Peer = peer) -> bool:
            return spectral_error(W, peer.solve(W, rank, iterations)) <= PEER_ERROR * float(values[rank])

        solvers[peer.name] = _peer_solver(peer, fewest_iterations(reaches, guess))
    case.runs += _interleaved(solvers, W, values, rank, arguments, clock)
    if not arguments.no_exact:
        before = [run.seconds for c in done if (c.rows, c.columns) == W.shape and (run := c.run("exact"))]
        seconds = before[0] if before else _timed(solve_exact, W, rank, clock)[1]
        case.runs.append(Run("exact", "gesdd", seconds, 1.0, 1.0))
    once: dict[str, Any] = {}
    if m * n <= 1280 * 1000 and rank <= 200:
        once["svds"] = solve_svds
    if papers:
        once |= {f"rsi q={q}": textbook_rsi(q) for q in (1, 2, 3, 4)}
        once[f"auto, tolerance {LOOSE_TOLERANCE}"] = auto(LOOSE_TOLERANCE)
    for name, solve in once.items():
        (factors, detail), seconds = _timed(solve, W, rank, clock)
        case.runs.append(_judge(name, detail, [seconds], W, values, rank, factors))
    return case


def iterations_before(peer: str, done: list[Case], case: Case) -> int:
    """Where to start: the power iterations of a peer on the same spectrum at the most similar share, or 2."""
    share = case.rank / min(case.rows, case.columns)
    similar = [
        (abs(math.log(c.rank / min(c.rows, c.columns) / share)), int(run.detail.removeprefix("n_iter=")))
        for c in done
        if c.spectrum == case.spectrum and (run := c.run(peer))
    ]
    return min(similar)[1] if similar else 2


def fewest_iterations(reaches: Callable[[int], bool], guess: int) -> int:
    """The fewest power iterations that are enough, sought from `guess` on in steps of one, or MOST_ITERATIONS."""
    iterations = guess
    if reaches(iterations):
        while iterations > 0 and reaches(iterations - 1):
            iterations -= 1
        return iterations
    while iterations < MOST_ITERATIONS:
        iterations += 1
        if reaches(iterations):
            break
    return iterations


def _interleaved(
    solvers: dict[str, Any],
    W: Any,
    values: Any,
    rank: int,
    arguments: argparse.Namespace,
    clock: Callable[[], float],
) -> list[Run]:
    times: dict[str, list[float]] = {name: [] for name in solvers}
    kept: dict[str, Any] = {}
    for _ in range(arguments.repetitions):
        for name, solve in solvers.items():
            if not times[name] or sum(times[name]) <= arguments.enough_seconds:
                kept[name], seconds = _timed(solve, W, rank, clock)
                times[name].append(seconds)
    return [_judge(name, detail, times[name], W, values, rank, factors) for name, (factors, detail) in kept.items()]


def _timed(solve: Any, W: Any, rank: int, clock: Callable[[], float]) -> tuple[Any, float]:
    started = clock()
    result = solve(W, rank)
    return result, clock() - started


def _peer_solver(peer: Any, iterations: int) -> Any:
    return lambda W, rank: (peer.solve(W, rank, iterations), f"n_iter={iterations}")


def _judge(name: str, detail: str, times: list[float], W: Any, values: Any, rank: int, factors: Any) -> Run:
    import numpy as np

    spectral = spectral_error(W, factors) / float(values[rank])
    left, right = factors
    frobenius = None
    if name == "auto" or W.size < LARGE:
        missed = 0.0
        for start in range(0, W.shape[0], 1024):
            piece = slice(start, start + 1024)
            missed += float(np.sum((W[piece] - left[piece] @ right).astype(np.float64) ** 2))
        frobenius = math.sqrt(missed / float(np.sum(values[rank:] ** 2)))
    return Run(name, detail, float(np.median(times)), spectral, frobenius, len(times))


def spectral_error(W: Any, factors: Any) -> float:
    """``||W - L R||_2`` by block Lanczos to about a thousandth: at most 12 blocks of 8, reorthogonalized."""
    import numpy as np

    left, right = factors
    generator = np.random.default_rng(7)
    basis = np.empty((W.shape[1], 0), W.dtype)
    images = []
    X = generator.standard_normal((W.shape[1], 8)).astype(W.dtype)
    for _ in range(min(12, W.shape[1] // 8)):
        for _repeat in range(2):
            X = np.linalg.qr(X - basis @ (basis.T @ X))[0]
        image = W @ X - left @ (right @ X)
        basis = np.concatenate((basis, X), axis=1)
        images.append(image)
        X = W.T @ image - right.T @ (left.T @ image)
    return float(np.linalg.norm(np.concatenate(images, axis=1).astype(np.float64), 2))


def gemm_rate(clock: Callable[[], float], size: int = 1536) -> float:
    """Flops a second of a square float32 product, the best of five."""
    import numpy as np

    A = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    A @ A
    best = math.inf
    for _ in range(5):
        started = clock()
        A @ A
        best = min(best, clock() - started)
    return 2.0 * size**3 / best


def ranks_for(shape: tuple[int, int], *, quick: bool) -> list[int]:
    k = min(shape)
    if k >= 2048:
        return sorted({*PAPER_RANKS, k // 8, k // 2})
    return [k // 8, k // 4] if quick else [k // 8, k // 4, k // 2]


def named_values(spectrum: str, size: int) -> Any:
    """A named spectrum, or "trained": the singular values of a trained weight, stretched to the size."""
    import numpy as np

    from benchmarks.spectra import SPECTRA as NAMED

    if spectrum != "trained":
        return NAMED[spectrum](size)
    stored = np.load(RESULTS / "trained_spectrum.npy", allow_pickle=False)
    return np.interp(np.linspace(0.0, 1.0, size), np.linspace(0.0, 1.0, stored.size), stored)
