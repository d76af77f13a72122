"""The Gaussian sketch: always drawn on the host, so that every backend starts from the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_gaussian(rows: int, columns: int, seed: int, dtype: np.dtype[Any], stream: int = 0) -> NDArray[Any]:
    """A (rows, columns) matrix of independent standard normals, in `dtype`.

    Drawn in float64 by PCG64 and then rounded, so float32 and float64 runs share their sketch too. `stream` gives
    independent draws under one seed (the sketch, the error estimator, the certificate).
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
    return generator.standard_normal((rows, columns)).astype(dtype, copy=False)


def draw_uniform(rows: int, columns: int, seed: int, dtype: np.dtype[Any], stream: int = 0) -> NDArray[Any]:
    """A (rows, columns) matrix of independent half-integers from -127.5 to 127.5, all equally likely, in `dtype`.

    A start for an iteration, whose constants don't matter as a Gaussian's do in a bound: a tenth of the time to draw.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
    integers = np.frombuffer(generator.bytes(rows * columns), np.int8).reshape(rows, columns)
    uniform: NDArray[Any] = integers.astype(dtype) + dtype.type(0.5)
    return uniform
