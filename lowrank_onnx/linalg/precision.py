"""Dtypes and scales: what is accumulated in what, and matrices brought into the range where squares are safe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray

SAFE_ENERGY = (1e-12, 1e24)
"""Squared Frobenius norms between which no rescaling is needed: Gram matrices neither overflow nor lose their tail."""

_ACCUMULATION = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A matrix on its device, in the accumulation dtype, scaled: the original is ``matrix * 2**exponent``.

    `energy` is the squared Frobenius norm of the scaled matrix, in float64.
    """

    matrix: DeviceArray
    energy: float
    exponent: int


def accumulation_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 for float16, bfloat16 and float32; float64 for float64.

    Raises
    ------
    FactorizationError
        for any other dtype.
    """
    if dtype.name not in _ACCUMULATION:
        raise FactorizationError(
            f"matrix of dtype {dtype.name}: expected {', '.join(_ACCUMULATION)}; "
            "convert it first, e.g. W.astype('float32')"
        )
    return np.dtype(_ACCUMULATION[dtype.name])


def squared_norm(backend: Backend, A: DeviceArray) -> float:
    """``||A||_F**2``: row sums in A's dtype, added in float64. NaN or infinite where A isn't finite or overflows."""
    xp = backend.xp
    with np.errstate(over="ignore", invalid="ignore"):
        rows = xp.vecdot(A, A, axis=-1)
        return float(xp.sum(xp.astype(rows, xp.float64)))


def prepare(backend: Backend, W: NDArray[Any], transfer: Callable[[], DeviceArray] | None = None) -> Prepared:
    """Bring `W` to the device in its accumulation dtype, with a squared norm that is safe to work with.

    `transfer` gives that array where it is already on its way.

    Raises
    ------
    FactorizationError
        for a matrix that isn't 2-D, is empty, holds NaN or infinity, or has a dtype that can't be factorized.
    """
    if W.ndim != 2 or W.size == 0:
        raise FactorizationError(f"array of shape {W.shape}: expected a matrix (in, out) with no empty side")
    xp = backend.xp
    dtype = accumulation_dtype(W.dtype)
    matrix = transfer() if transfer else backend.to_device(W.astype(dtype, copy=False))
    energy = squared_norm(backend, matrix)
    if SAFE_ENERGY[0] <= energy <= SAFE_ENERGY[1]:
        return Prepared(matrix, energy, 0)
    largest = float(xp.max(xp.abs(matrix)))
    if not math.isfinite(largest):
        bad = int(xp.sum(xp.astype(~xp.isfinite(matrix), xp.int64)))
        raise FactorizationError(
            f"matrix of shape {W.shape} with {bad} NaN or infinite entries: expected finite weights; mend or exclude it"
        )
    if largest == 0.0:
        return Prepared(matrix, 0.0, 0)
    exponent = math.frexp(largest)[1]
    # Two exact steps: 2**-exponent itself may not be representable for the smallest denormals.
    half = exponent // 2
    scaled = matrix * math.ldexp(1.0, -half) * math.ldexp(1.0, half - exponent)
    return Prepared(scaled, squared_norm(backend, scaled), exponent)


def narrow_factors(left: NDArray[Any], right: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The factors (in, r) and (r, out) in a narrower dtype, without overflow.

    Where a column of `left` or a row of `right` would overflow, a power of two moves from one to the other, which
    leaves the product as it is.

    Raises
    ------
    FactorizationError
        where even the best split of some direction overflows `dtype`.
    """
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    columns = np.max(np.abs(left.astype(np.float64)), axis=0)
    rows = np.max(np.abs(right.astype(np.float64)), axis=1)
    if max(float(np.max(columns)), float(np.max(rows))) <= largest:
        return left.astype(dtype), right.astype(dtype)
    positive = (columns > 0) & (rows > 0)
    ratio = np.where(positive, rows / np.where(columns > 0, columns, 1.0), 1.0)
    shift = np.where(np.maximum(columns, rows) > largest, np.rint(np.log2(ratio) / 2.0), 0.0).astype(np.int64)
    moved_left, moved_right = np.ldexp(columns, shift), np.ldexp(rows, -shift)
    worst = float(np.max(np.maximum(moved_left, moved_right)))
    if not worst <= largest:
        raise FactorizationError(
            f"factors with entries up to {worst:.3g}: expected at most {largest:.3g}, the largest {dtype.name}; "
            "exclude this weight, or convert the model to float32"
        )
    return np.ldexp(left, shift).astype(dtype), np.ldexp(right, -shift[:, None]).astype(dtype)
