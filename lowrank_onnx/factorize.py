"""The factorize stage: one weight at a time in memory, factors on disk, and an error that was measured as stored.

A weight is factorized once, at the largest rank that any candidate needs; each smaller rank is a prefix of the same
factors. They wait in a spool directory until the plan is made, so that the memory needed does not grow with the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank_onnx import linalg
from lowrank_onnx.cache import NO_CACHE, Cache, remember
from lowrank_onnx.cache.codecs import factors_codec
from lowrank_onnx.config import Device, Method
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.measure import measure_factors
from lowrank_onnx.model_io import Model
from lowrank_onnx.progress import Progress
from lowrank_onnx.types import (
    Array,
    Factors,
    MatrixShape,
    NewTensor,
    Rearrangement,
    Spectrum,
    WeightRef,
    numpy_dtype,
    rearrange,
)
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


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
    second_moment : (groups, in, in) of the weight's inputs. With it the factors minimise the error of ``x @ W`` over
        such inputs, and the spectrum and its tails are in that norm; without it, that of W itself.

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


@dataclass(frozen=True, slots=True)
class StoredFactors:
    """Factors that wait on disk: (groups, r, in) and (groups, r, out), both with the rank on the middle axis, so that a
    smaller rank is read without touching the rest.
    """

    left: Path
    right: Path
    dtype: str
    accumulation: str
    solver: str

    def read(self, part: str, rank: int) -> Array:
        """(groups, in, r) for part "left", (groups, r, out) for part "right", in the weight's stored dtype."""
        by_rank = np.load(self.left if part == "left" else self.right, mmap_mode="r", allow_pickle=False)
        prefix = np.asarray(by_rank[:, :rank]).astype(numpy_dtype(self.dtype))
        return prefix.transpose(0, 2, 1) if part == "left" else prefix


class FactorSpool:
    """Factors on disk, by weight, in a directory that the caller owns and removes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stored: dict[WeightRef, StoredFactors] = {}

    def __contains__(self, weight: WeightRef) -> bool:
        return weight in self._stored

    def put(self, weight: WeightRef, factors: Factors) -> None:
        """Write the factors of one weight."""
        index = len(self._stored)
        left, right = (self._directory / f"{index}.{part}.npy" for part in ("left", "right"))
        np.save(left, np.ascontiguousarray(factors.left.transpose(0, 2, 1)), allow_pickle=False)
        np.save(right, np.ascontiguousarray(factors.right), allow_pickle=False)
        self._stored[weight] = StoredFactors(left, right, weight.dtype, factors.left.dtype.name, factors.solver)

    def get(self, weight: WeightRef) -> StoredFactors:
        """The factors of one weight."""
        return self._stored[weight]

    def tensor(self, new: NewTensor, rank: int) -> Array:
        """The values of a new initializer, in its stored layout and dtype."""
        return rearrange(self.get(new.weight).read(new.part, rank), new.arrangement)


def measure_errors(stored: Array, to_matrices: Rearrangement, left: Array, right: Array) -> tuple[float, float]:
    """How far L R is from W as both are stored: (||W - L R||_F / ||W||_F, largest estimate of ||W - L R||_2 / ||W||_2).

    Rounding of the factors to the stored dtype is part of it. `left` is (groups, in, r), `right` (groups, r, out).
    """
    groups = zip(rearrange(stored, to_matrices), left, right, strict=True)
    measured = [measure_factors(matrix, a, b) for matrix, a, b in groups]
    energy = sum(residual.energy for residual in measured)
    missed = sum(residual.residual_energy for residual in measured)
    return ((missed / energy) ** 0.5 if energy else 0.0), max(residual.spectral_error for residual in measured)


def _remembered(
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


def spool_factors(
    model: Model,
    groups: Sequence[SharedWeight],
    ranks: Sequence[int],
    spool: FactorSpool,
    options: FactorizeOptions,
    second_moments: Mapping[WeightRef, Array],
    progress: Progress,
    cache: Cache = NO_CACHE,
) -> tuple[Spectrum | None, ...]:
    """Factorize each weight at its rank, one in memory at a time; rank 0 leaves a weight alone.

    `second_moments` holds those of the inputs of the weights for which they are known; `cache` gives factors that an
    earlier run made of the same weight with the same options. Returns the spectra, None for a
    weight that was left alone.
    """
    weights = WeightReader(model, (group.weight for group in groups))
    spectra: list[Spectrum | None] = []
    with progress.stage("factorizing", len(groups)) as stage:
        for group, rank in zip(groups, ranks, strict=True):
            spectrum = None
            if rank:
                stored = weights.read(group.weight)
                arrangement, moment = group.sites[0].to_matrices, second_moments.get(group.weight)
                factors, spectrum = _remembered(cache, stored, group.weight, arrangement, rank, options, moment)
                del stored
                spool.put(group.weight, factors)
            spectra.append(spectrum)
            stage.advance(detail=group.weight.name)
    return tuple(spectra)
