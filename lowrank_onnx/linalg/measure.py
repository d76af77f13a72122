"""How far an approximation is from a matrix, measured on it as it is, rounding to a narrow dtype included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.backend import select_backend
from lowrank_onnx.linalg.precision import prepare, squared_norm
from lowrank_onnx.linalg.residual import residual_norm_estimate


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is left of W when an approximation A is taken away.

    Attributes
    ----------
    energy : ||W||_F^2.
    residual_energy : ||W - A||_F^2, exact up to rounding.
    spectral_error : a lower estimate of ||W - A||_2 / ||W||_2, by block Lanczos on both; 0 for a zero matrix.
    """

    energy: float
    residual_energy: float
    spectral_error: float

    @property
    def relative_error(self) -> float:
        """||W - A||_F / ||W||_F; 0 for a zero matrix."""
        return math.sqrt(self.residual_energy / self.energy) if self.energy else 0.0


def measure_approximation(W: NDArray[Any], approximation: NDArray[Any], *, seed: int = 0) -> Measurement:
    """Measure an approximation against the matrix that it stands for.

    Parameters
    ----------
    W : (in, out), any floating dtype and strides; accumulated in float32, or float64 for a float64 W.
    approximation : (in, out), any floating dtype.
    seed : of the estimate's random start.

    Raises
    ------
    FactorizationError
        W isn't a matrix of finite numbers.
    """
    backend = select_backend("cpu")
    prepared = prepare(backend, W)
    if prepared.energy == 0.0:
        return Measurement(0.0, float(np.sum(np.square(approximation, dtype=np.float64))), 0.0)
    accumulation = backend.numpy_dtype(prepared.matrix)
    residual = prepared.matrix - np.ldexp(approximation.astype(accumulation, copy=False), -prepared.exponent)
    nothing = residual[:, :0], residual[:0].T
    missed = squared_norm(backend, residual)
    spectral = residual_norm_estimate(backend, residual, *nothing, seed)
    largest = residual_norm_estimate(backend, prepared.matrix, *nothing, seed)
    unscale = 2 * prepared.exponent
    return Measurement(math.ldexp(prepared.energy, unscale), math.ldexp(missed, unscale), spectral / largest)
