"""Least squares with a pull towards given coefficients: the full-rank problem before a regression of low rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import DeviceName, select_backend

Doubles = NDArray[np.float64]


def pulled_solution(gram: Doubles, cross: Doubles, towards: Doubles, pull: float, device: DeviceName) -> Doubles:
    """The M that minimises ``||X M - T||_F**2 + pull ||M - W||_F**2``.

    Parameters
    ----------
    gram : (in, in), ``X' X``, positive semidefinite.
    cross : (in, out), ``X' T``.
    towards : (in, out), W.
    pull : above 0; with it the solution is unique however singular the Gram matrix is.
    device : where to solve.

    Raises
    ------
    FactorizationError
        where ``X' X + pull I`` isn't numerically positive definite.
    """
    backend = select_backend(device)
    regular = backend.to_device(gram + pull * np.eye(gram.shape[0]))
    inverse = backend.inverse_cholesky(regular)
    if inverse is None:
        raise FactorizationError(f"normal equations with a pull of {pull:.3g} are singular: expected a larger pull")
    # Solved for the difference from W: where there is nothing to correct, W comes out as it went in.
    missing = backend.to_device(cross - gram @ towards)
    correction = inverse @ (inverse.T @ missing)
    return towards + backend.to_host(correction).astype(np.float64)
