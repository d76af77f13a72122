"""Factorizing one weight, with an error that was measured as stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lowrank_onnx import linalg
from lowrank_onnx.cache import Cache, remember
from lowrank_onnx.cache.codecs import factors_codec
from lowrank_onnx.config import Device, Method
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.measure import measure_approximation
from lowrank_onnx.types import (
    Array,
    Factors,
    MatrixShape,
    Rearrangement,
    Spectrum,
    WeightRef,
    rearrange,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeOptions:
    """What the factors of a weight depend on, besides the weight."""

    method: Method
    power_iterations: int
    oversampling: int
    seed: int
    device: Device


def weight_seed(weight: WeightRef, seed: int, group: int) -> int:
    """A seed for one matrix: the run's seed mixed with the weight's place, so no two weights share a sketch."""
    text = f"{seed}\0{weight.scope!r}\0{weight.name}\0{group}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def factorize(
    stored: Array,
    weight: WeightRef,
    to_matrices: Rearrangement,
    rank: int,
    options: FactorizeOptions,
    second_moment: Array | None = None,
) -> tuple[Factors, Spectrum]:
    """Factorize one stored weight at rank r.

    Parameters
    ----------
    stored : the weight in its stored layout and dtype; not changed.
    weight : where it is stored; part of the sketch's seed and of error messages.
    to_matrices : from the stored layout to (groups, in, out).
    rank : r, at most min(in, out).
    options : method and its parameters.
    second_moment : (groups, in, in) of the weight's inputs, or its diagonal (groups, in). With it the factors minimise
        the error of ``x @ W`` over such inputs, and the spectrum and its tails are in that norm; without it, that of W
        itself.

    Raises
    ------
    FactorizationError
        If the weight isn't finite; the message names it.
    """
    matrices = rearrange(stored, to_matrices)
    results = []
    for group, matrix in enumerate(matrices):
        try:
            results.append(
                linalg.factor(
                    matrix,
                    rank,
                    method=options.method,
                    power_iterations=options.power_iterations,
                    oversampling=options.oversampling,
                    seed=weight_seed(weight, options.seed, group),
                    device=options.device,
                    second_moment=None if second_moment is None else second_moment[group],
                )
            )
        except FactorizationError as error:
            raise FactorizationError(f"weight {weight.name!r}: {error}") from error
    energy = sum(result.energy for result in results)
    tail = sum(result.energy * result.relative_error**2 for result in results)
    weighed = sum(result.energy if result.weighted_energy is None else result.weighted_energy for result in results)
    factors = Factors(
        left=np.stack([result.left for result in results]),
        right=np.stack([result.right for result in results]),
        singular_values=np.stack([result.singular_values for result in results]),
        relative_error=(tail / energy) ** 0.5 if energy else 0.0,
        spectral_error=max(result.spectral_error for result in results),
        solver=results[0].solver,
    )
    return factors, Spectrum(values=factors.singular_values, energy=weighed)


def measure_errors(stored: Array, to_matrices: Rearrangement, approximation: Array) -> tuple[float, float]:
    """How far an approximation A is from W as both are stored: (||W - A||_F / ||W||_F, largest estimate of
    ||W - A||_2 / ||W||_2). Rounding of the factors to the stored dtype is part of it. `approximation` is
    (groups, in, out).
    """
    groups = zip(rearrange(stored, to_matrices), approximation, strict=True)
    measured = [measure_approximation(matrix, one) for matrix, one in groups]
    energy = sum(residual.energy for residual in measured)
    missed = sum(residual.residual_energy for residual in measured)
    return ((missed / energy) ** 0.5 if energy else 0.0), max(residual.spectral_error for residual in measured)


def factorize_once(
    cache: Cache,
    stored: Array,
    weight: WeightRef,
    to_matrices: Rearrangement,
    rank: int,
    options: FactorizeOptions,
    second_moment: Array | None,
) -> tuple[Factors, Spectrum]:
    """`factorize`, unless the cache knows the result."""
    arguments = (stored, weight, to_matrices, rank, options, second_moment)
    slot = cache.slot("factors", lambda: arguments)
    return remember(slot, factors_codec(MatrixShape(*to_matrices.merged), rank), lambda: factorize(*arguments))
