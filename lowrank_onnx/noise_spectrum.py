"""What low rank would leave of pure noise: the mark that a weight's spectrum is held against.

The squared singular values of a large matrix of independent random numbers follow the law of Marchenko and Pastur,
"Distribution of eigenvalues for some sets of random matrices", Mathematics of the USSR-Sbornik 1, 1967. A weight that
keeps no more of its energy at a rank than such a matrix does has nothing that low rank could use.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lowrank_onnx.types import MatrixShape

_STEPS = 4096


@lru_cache(maxsize=1024)
def noise_tail(shape: MatrixShape, rank: int) -> float:
    """||W - W_r||_F^2 / ||W||_F^2 of a large random matrix of this shape at a rank, the same in every group.

    Parameters
    ----------
    shape : of the weight.
    rank : from 0, where all is lost, to min(in, out) and beyond, where nothing is.
    """
    small, large = sorted((shape.in_features, shape.out_features))
    if rank >= small:
        return 0.0
    ratio = small / large
    # Eigenvalues lie between (1 - sqrt(ratio))^2 and (1 + sqrt(ratio))^2; with the cosine their density is smooth.
    angle = (np.arange(_STEPS) + 0.5) * np.pi / _STEPS
    values = 1.0 + ratio + 2.0 * np.sqrt(ratio) * np.cos(angle)
    density = np.sin(angle) ** 2 / values
    share = np.cumsum(density) / np.sum(density)
    energy = np.cumsum(density * values) / np.sum(density * values)
    return 1.0 - float(np.interp(rank / small, np.concatenate(([0.0], share)), np.concatenate(([0.0], energy))))
