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
