"""NumPy's side of what the array API lacks: BLAS and LAPACK through SciPy, on as many threads as help."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import scipy.linalg
import threadpoolctl
from numpy.typing import NDArray

SINGLE_THREAD_SIZE = 2048
"""Up to this order LAPACK's eigensolvers run on one thread: their thousands of tiny steps each end in a barrier, which
costs more than it gains, and stalls by orders of magnitude where another process holds one of the cores."""

SINGLE_THREAD_WORK = 3e8
"""Up to this m n r a whole factorization runs on one thread, for the same reason: it is some 50 ms of small steps."""

ALL_THREADS_WORK = 5e9
"""From this m n r on a factorization inside `beside_runtime` gets all threads: half a second of large products."""

SMALLEST_REDUCED = 8
"""Below this order the eigensolver is called as a whole."""

BACK_BLOCK = 64
"""Columns of workspace for each eigenvector that is transformed back."""

MIRRORED_TILE = 64
"""Order of the tiles in which a triangle is mirrored: two fit the first level of cache."""

FACTORED_AT_ONCE = 512
"""Order of a symmetric matrix from which on its Cholesky factor is made by halves."""

THREADED_FROM = 128
"""Order of a matrix from which on LAPACK's Cholesky factorization takes all threads: SciPy's copy of BLAS then waits
for cores that NumPy's still holds, 2 to 60 ms for what is 0.2 ms of work."""

INVERTED_AT_ONCE = 128
"""Order of a triangular matrix from which on it is inverted by halves."""

SUBSTITUTED_AT_ONCE = 64
"""Order of a triangular matrix from which on its equations are solved by halves."""


@functools.cache
def _blas_threads() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def single_thread(wanted: bool) -> contextlib.AbstractContextManager[object]:
    """A context in which BLAS and LAPACK run on one thread, or where not `wanted` on as many as before."""
    return _blas_threads().limit(limits=1, user_api="blas") if wanted else contextlib.nullcontext()


_all_threads: ContextVar[int | None] = ContextVar("all threads", default=None)
"""How many threads BLAS had before `beside_runtime`; None outside of it."""


@contextlib.contextmanager
def beside_runtime() -> Iterator[None]:
    """A context for work that takes turns with onnxruntime: BLAS has one thread but for large factorizations.

    The threads of BLAS spin at the end of each product, and so do onnxruntime's for a while after a run. Where the two
    meet, or another process holds a core, a product takes ten times as long as on one thread.
    """
    blas = _blas_threads()
    threads = max((library["num_threads"] for library in blas.info() if library["user_api"] == "blas"), default=1)
    token = _all_threads.set(threads)
    try:
        with blas.limit(limits=1, user_api="blas"):
            yield
    finally:
        _all_threads.reset(token)


def threads_for_work(work: int) -> contextlib.AbstractContextManager[object]:
    """The threads that suit a factorization of `work` = m n r."""
    threads = _all_threads.get()
    if threads is None or work < ALL_THREADS_WORK:
        return single_thread(work <= SINGLE_THREAD_WORK)
    lifted: contextlib.AbstractContextManager[object] = _blas_threads().limit(limits=threads, user_api="blas")
    return lifted


T = TypeVar("T")
K = TypeVar("K")
Problem: TypeAlias = tuple[K, Callable[[], T], int]
"""What it is about, how it is solved, and m n r."""


@contextlib.contextmanager
def solver_of_small(wanted: bool) -> Iterator[Callable[[Iterable[Problem[K, T]]], Iterator[tuple[K, T]]]]:
    """Solves problems in their order; inside `beside_runtime`, those that get one thread some at a time.

    What is solved at once is as much as there are threads, and as much again is ready. Elsewhere, or where not
    `wanted`, one goes after the other.
    """
    threads = _all_threads.get() or 1
    with ThreadPoolExecutor(threads, "small") as executor:

        def solve(problems: Iterable[Problem[K, T]]) -> Iterator[tuple[K, T]]:
            waiting: deque[tuple[K, Future[T]]] = deque()
            for about, problem, work in problems:
                while waiting and (len(waiting) >= 2 * threads or work >= ALL_THREADS_WORK):
                    yield waiting[0][0], waiting.popleft()[1].result()
                if threads > 1 and wanted and work < ALL_THREADS_WORK:
                    waiting.append((about, executor.submit(problem)))
                else:
                    yield about, problem()
                del problem
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()

        yield solve


class Begin(Protocol):
    """Begins a problem; what it gives waits for the result."""

    def __call__(self, problem: Callable[[], T], /) -> Callable[[], T]:
        """Begin one."""


@contextlib.contextmanager
def begin_small(work: int) -> Iterator[Begin]:
    """Begins problems of `work` = m n r each: inside `beside_runtime`, those that get one thread, when one is free.

    Elsewhere a problem is solved when its result is asked for: those that are begun on the chance of being wanted cost
    nothing then.
    """
    threads = _all_threads.get() or 1
    if threads == 1 or work >= ALL_THREADS_WORK:
        yield functools.cache
        return
    with ThreadPoolExecutor(threads, "small") as executor:

        def begin(problem: Callable[[], T], /) -> Callable[[], T]:
            return executor.submit(problem).result

        try:
            yield begin
        finally:
            executor.shutdown(cancel_futures=True)


def mirror_upper(upper: NDArray[Any], tile: int = MIRRORED_TILE) -> NDArray[Any]:
    """Fill the lower triangle of a square matrix from the upper one, in place, tile by tile to stay in cache."""
    size = upper.shape[0]
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        upper[stop:, start:stop] = upper[start:stop, stop:].T
        corner = upper[start:stop, start:stop]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T
    return upper


def cholesky_upper(G: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The upper triangular R with ``R' R = G``; None where G isn't numerically positive definite.

    Large ones by halves: most of the work is then in products, which are several times as fast as LAPACK's own blocks,
    and what isn't runs on one thread, for the reason that `SINGLE_THREAD_SIZE` has.
    """
    size = G.shape[0]
    if size <= FACTORED_AT_ONCE:
        # G is symmetric: its transpose is the same matrix in the order that LAPACK wants.
        with single_thread(size >= THREADED_FROM):
            R, failed = scipy.linalg.lapack.dpotrf(G.T, lower=0, clean=1)
        return None if failed else np.asarray(R)
    half = size // 2
    first = cholesky_upper(G[:half, :half])
    if first is None:
        return None
    beside = solve_upper(first, G[:half, half:], transposed=True)
    second = cholesky_upper(G[half:, half:] - beside.T @ beside)
    if second is None:
        return None
    whole = np.zeros((size, size), order="F")
    whole[:half, :half], whole[:half, half:], whole[half:, half:] = first, beside, second
    return whole


def inverse_cholesky(G: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """``R^-1`` for the upper triangular R with ``R' R = G``; None where G isn't numerically positive definite."""
    R = cholesky_upper(G)
    return None if R is None else _inverse_upper(R)


def _inverse_upper(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix by halves, whose product is faster than LAPACK's columns."""
    size = R.shape[0]
    if size <= INVERTED_AT_ONCE:
        return np.asarray(scipy.linalg.lapack.dtrtri(R, lower=0)[0])
    half = size // 2
    inverse = np.zeros_like(R)
    inverse[:half, :half] = _inverse_upper(R[:half, :half])
    inverse[half:, half:] = _inverse_upper(R[half:, half:])
    inverse[:half, half:] = inverse[:half, :half] @ (R[:half, half:] @ inverse[half:, half:]) * -1.0
    return inverse


def solve_upper(R: NDArray[Any], B: NDArray[Any], transposed: bool) -> NDArray[Any]:
    """``R^-1 B``, or ``R'^-1 B``, for an upper triangular R and a B of one or two dimensions.

    By halves: nearly all work is then in products, which are faster than BLAS's own substitution, and for which other
    threads needn't wait.
    """
    solved: NDArray[Any] = np.array(B, np.result_type(R, B), order="C")
    _substitute(R, solved.reshape(len(R), -1), transposed)
    return solved


def _substitute(R: NDArray[Any], X: NDArray[Any], transposed: bool) -> None:
    """Put the solution into X, which is the right side."""
    size = R.shape[0]
    if size <= SUBSTITUTED_AT_ONCE:
        # Of NumPy's own: to take turns with SciPy's copy of BLAS costs each time that its threads find the cores taken.
        inverse = np.linalg.inv(R)
        X[...] = (inverse.T if transposed else inverse) @ X
        return
    half = size // 2
    upper, lower = X[:half], X[half:]
    if transposed:
        _substitute(R[:half, :half], upper, transposed)
        lower -= R[:half, half:].T @ upper
        _substitute(R[half:, half:], lower, transposed)
    else:
        _substitute(R[half:, half:], lower, transposed)
        upper -= R[:half, half:] @ lower
        _substitute(R[:half, :half], upper, transposed)


def eigenvalues(G: NDArray[Any]) -> NDArray[Any]:
    """All eigenvalues of a symmetric G, descending."""
    with single_thread(G.shape[0] <= SINGLE_THREAD_SIZE):
        values: NDArray[Any] = scipy.linalg.eigvalsh(G, check_finite=False)
    return values[::-1]


def eigh_leading(G: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The `count` largest eigenvalues of a symmetric G, descending, and their eigenvectors as columns.

    LAPACK's divide and conquer driver in its three parts, because the last, the back-transformation, is a third of the
    work for all eigenvectors and need be done for the wanted ones only. The partial driver (MRRR) is slower at any
    count that pays.

    Raises
    ------
    numpy.linalg.LinAlgError
        where divide and conquer doesn't converge.
    """
    size = G.shape[0]
    lapack = scipy.linalg.lapack
    wide = G.dtype == np.float64
    reduce, lwork, conquer, apply = (
        (lapack.dsytrd, lapack.dsytrd_lwork, lapack.dstevd, lapack.dormqr)
        if wide
        else (lapack.ssytrd, lapack.ssytrd_lwork, lapack.sstevd, lapack.sormqr)
    )
    if size < SMALLEST_REDUCED:
        values, vectors = scipy.linalg.eigh(G, driver="evd", check_finite=False)
        return values[::-1][:count], vectors[:, ::-1][:, :count]
    with single_thread(size <= SINGLE_THREAD_SIZE):
        reflectors, diagonal, off_diagonal, tau, _ = reduce(G.T, lower=1, lwork=int(lwork(size, lower=1)[0]))
        values, inner, failed = conquer(diagonal, off_diagonal)
        if failed:
            raise np.linalg.LinAlgError(f"eigenvalues of a matrix of order {size}: divide and conquer did not converge")
        vectors = np.empty((size, count), G.dtype, order="F")
        vectors[0] = inner[0, size - count :]
        # Reflectors of the lower triangle leave the first row as it is.
        rest = np.asfortranarray(inner[1:, size - count :])
        vectors[1:] = apply("L", "N", reflectors[1:, :-1], tau, rest, BACK_BLOCK * count, overwrite_c=1)[0]
    return values[::-1][:count], vectors[:, ::-1]
