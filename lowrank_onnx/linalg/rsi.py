"""Randomized subspace iteration exactly as published: the reference that the faster solvers are held against.

arXiv 2604.02659, Algorithm 1, which is Algorithm 2 of Tropp and Webber (arXiv 2306.12418).
"""

from __future__ import annotations

from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.solution import Triplets


def solve_rsi(backend: Backend, W: DeviceArray, sketch: DeviceArray, power_iterations: int) -> Triplets:
    """Subspace iteration from a given sketch: ``X = qr(W Y)``, ``Y = W' X``, q times, then the SVD of ``Y'``.

    Parameters
    ----------
    W : (m, n) matrix on the device.
    sketch : (n, l) Gaussian matrix in W's dtype; l is the rank plus the oversampling, at most min(m, n).
    power_iterations : the paper's q, at least 1; q = 1 is the randomized SVD of Halko, Martinsson and Tropp.

    Returns
    -------
    Triplets
        all l of them; the caller truncates to the rank.
    """
    xp = backend.xp
    Y = sketch
    for _ in range(power_iterations):
        X, _R = xp.linalg.qr(W @ Y)
        Y = W.T @ X
    # Y' = S diag(values) V': the SVD of the tall Y gives the same triplets and is the cheaper side for LAPACK.
    V, values, St = xp.linalg.svd(Y, full_matrices=False)
    return Triplets((X @ St.T) * values, values, V, "rsi")
