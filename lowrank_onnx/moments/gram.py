"""Products X'X beside a running model: single-threaded BLAS calls, several at a time.

BLAS's own threads end each product in a barrier where they spin, which costs an order of magnitude where another
process or onnxruntime's threads hold a core. Threads of this module's own wait without spinning, and divide the work
in the same way on every machine, so that the sums don't depend on the number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from lowrank_onnx.linalg.lapack import single_thread
from lowrank_onnx.types import Array

STRIPE = 256
"""Rows of the product that one call computes: enough that BLAS is at its full speed."""


@contextmanager
def gram_threads() -> Iterator[Executor]:
    """Threads for `add_upper_gram`; BLAS is single-threaded in the whole process as long as the context is open."""
    with single_thread(True), ThreadPoolExecutor(os.cpu_count() or 1, "gram") as executor:
        yield executor


def add_upper_gram(total: Array, rows: Array, executor: Executor | None = None) -> None:
    """Add the upper triangle of rows' @ rows to `total`; what is below it is left undefined.

    Parameters
    ----------
    total : (in, in).
    rows : (n, in) float32 or float64, which is what is multiplied in.
    executor : runs the parts of large products; None runs one after the other.
    """
    size = rows.shape[1]

    def add_stripe(start: int) -> None:
        stop = min(start + STRIPE, size)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
            total[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]

    starts = range(0, size, STRIPE)
    if executor is None or len(starts) == 1:
        for start in starts:
            add_stripe(start)
    else:
        list(executor.map(add_stripe, starts))
