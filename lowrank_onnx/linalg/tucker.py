"""Tucker-2: ``W[c, k, o] ~ sum_(s, t) first[c, s] core[s, k, t] last[t, o]``: 1x1, k-wide and 1x1 convolutions.

Given `first` all else is exact, in the plain norm and in the metric C of a second moment: with the Y of
`lowrank_onnx.linalg.leading`, the energy that a core of t columns can capture is that of the t leading singular values
of Y (reduced-rank regression), and `core`, `last` follow from its singular vectors. Y is nested in the columns of
`first`, so one decomposition of C and one small eigenproblem for each first rank give the exact error of every pair of
ranks. `first` itself starts from the truncated HOSVD (De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl.
21(4), 2000), whitened where there is a second moment, and is improved by alternating least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.backend import Backend, DeviceArray
from lowrank_onnx.linalg.leading import LEAST_GAIN, LeadingFamily, Projection, missed_energy, project
from lowrank_onnx.linalg.refit import refit


@dataclass(frozen=True, slots=True)
class TuckerFactors:
    """Three factors, in the accumulation dtype of W.

    Attributes
    ----------
    first : (channels, r_in), orthonormal columns up to one scale.
    core : (r_in, k, r_out), k all kernel positions.
    last : (r_out, out), orthonormal rows up to one scale.
    error : ``||W - W'||_C**2 / ||W||_C**2`` before rounding to that dtype.
    """

    first: NDArray[Any]
    core: NDArray[Any]
    last: NDArray[Any]
    error: float


def tucker_errors(family: LeadingFamily, ranks: Sequence[int]) -> NDArray[np.float64]:
    """The relative squared errors at some first ranks and every last rank.

    Parameters
    ----------
    family : of W (channels, kernel..., out) with the channels leading.
    ranks : first ranks, each from 1 to the family's largest.

    Returns
    -------
    (len(ranks), out), the last rank running from 1 to out.

    Raises
    ------
    FactorizationError
        for a rank out of range.
    """
    backend, out = family.backend, family.folded.weight.shape[2]
    table = np.zeros((len(ranks), out))
    for rank in ranks:
        _check_ranks(family, rank, out)
    if family.folded.energy == 0.0:
        return table
    with family.folded.threads(backend):
        gram, known = backend.xp.zeros((out, out), dtype=backend.xp.float64, device=backend.device), 0
        for row in np.argsort(ranks):
            # The rows of a smaller rank are the first of a larger one: only what is new is multiplied.
            rows = family.projection.leading(ranks[row]).captured.shape[0]
            gram = gram + backend.gram(family.projection.captured[known:rows, :])
            known = rows
            captured = np.cumsum(np.clip(backend.eigenvalues(gram), 0.0, None))
            table[row] = np.clip(1.0 - captured / family.folded.energy, 0.0, None)
    return table


def factor_tucker(family: LeadingFamily, ranks: tuple[int, int], *, sweeps: int = 0) -> TuckerFactors:
    """The factors at (r_in, r_out), after at most so many sweeps of alternating least squares (none without a metric).

    Raises
    ------
    FactorizationError
        for ranks that are not from 1 to the family's largest and to out.
    """
    _check_ranks(family, *ranks)
    with family.folded.threads(family.backend):
        return _factor(family, *ranks, sweeps)


def _factor(family: LeadingFamily, rank_in: int, rank_out: int, sweeps: int) -> TuckerFactors:
    backend, folded = family.backend, family.folded
    projection = family.projection.leading(rank_in)
    core, last, error = _solve(family, projection, rank_out)
    for _ in range(sweeps if folded.metric is not None else 0):
        a, b, out = folded.weight.shape
        # `last` is orthonormal: what it leaves out doesn't depend on `first`; the rest is a problem of r_out columns.
        image = backend.xp.reshape(folded.image, (a * b, out)) @ last.T
        target = backend.xp.reshape(image, (a, b, rank_out))
        improved = project(backend, folded, refit(backend, folded, projection.first, core, target))
        found = _solve(family, improved, rank_out)
        if found[2] >= error * (1.0 - LEAST_GAIN):
            break
        projection, (core, last, error) = improved, found
    return _finished(family, projection.first, core, last, error)


def _check_ranks(family: LeadingFamily, rank_in: int, rank_out: int) -> None:
    out = family.folded.weight.shape[2]
    if not (1 <= rank_in <= family.largest_rank and 1 <= rank_out <= out):
        raise FactorizationError(
            f"ranks ({rank_in}, {rank_out}): expected 1 to {family.largest_rank}, the largest that was asked for, and "
            f"1 to {out}, the outputs"
        )


def _output_directions(backend: Backend, captured: DeviceArray, count: int) -> tuple[DeviceArray, DeviceArray]:
    """The energies of the leading output directions of Y, descending, and the directions as columns."""
    return backend.eigh_leading(backend.gram(captured), count)


def _solve(family: LeadingFamily, projection: Projection, rank_out: int) -> tuple[DeviceArray, DeviceArray, float]:
    """The best core (r_in k, r_out) and last factor (r_out, out), orthonormal, for a first factor; and the error."""
    backend, Y = family.backend, projection.captured
    _, directions = _output_directions(backend, Y, rank_out)
    reduced = Y @ directions
    return projection.solution(backend, reduced), directions.T, missed_energy(backend, family.folded, reduced)


def _finished(
    family: LeadingFamily, first: DeviceArray, core: DeviceArray, last: DeviceArray, error: float
) -> TuckerFactors:
    """On the host, with the size of W spread evenly over the three."""
    parts = [family.backend.to_host(part) for part in (first, core, last)]
    rank_in, rank_out = first.shape[1], last.shape[0]
    norms = [float(np.linalg.norm(part)) or 1.0 for part in parts]
    mean = (norms[0] * norms[1] * norms[2]) ** (1 / 3) * 2.0 ** (family.folded.exponent / 3)
    scaled = [(part * (mean / norm)).astype(family.dtype) for part, norm in zip(parts, norms, strict=True)]
    return TuckerFactors(scaled[0], scaled[1].reshape(rank_in, -1, rank_out), scaled[2], error)
