"""For each weight, the ways to realise it: dense, or a form at a rank, each with its cost and its predicted damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lowrank_onnx.forms import FORMS
from lowrank_onnx.types import MatrixShape, Spectrum

DENSE = "dense"
"""The form of a candidate that leaves the weight as it is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to realise a weight.

    Attributes
    ----------
    form : a key of `lowrank_onnx.forms.FORMS`, or "dense".
    rank : r, or None when dense.
    parameters : weights stored.
    macs : multiply-accumulates of one run over all sites that use the weight; None where no run was observed.
    error : predicted damage, from the tail energy ||W - W_r||_F^2 / ||W||_F^2 (in the norm of the weight's inputs where
        their second moment is known); 0 when dense.
    latency_ms : milliseconds of one run, added up over all sites that use the weight; None where it wasn't measured.
    """

    form: str
    rank: int | None
    parameters: int
    macs: int | None
    error: float
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """A weight as the planner sees it: no ONNX in it.

    `positions` is the total number of positions at which the sites that share the weight apply it in one run, or None
    where no run was observed. `damage` takes the relative squared tail energy of a rank to the planner's unit of
    damage; it must not fall as the tail grows, and be 0 at 0. `latency` takes a rank (None: dense) to the milliseconds
    of one run over all sites of the weight; it is None where they weren't measured, and `unmeasured` then says why, if
    measuring was tried. Times that differ by no more than the share `noise` can't be told apart. `largest_useful` is
    the largest rank at which factors take less room than what is stored now, which may be narrower than they are; None
    where only the number of weights counts.
    """

    name: str
    shape: MatrixShape
    form: str
    positions: int | None
    damage: Callable[[float], float] = field(default=float, compare=False)
    latency: Callable[[int | None], float] | None = field(default=None, compare=False)
    noise: float = 0.0
    unmeasured: str = ""
    largest_useful: int | None = None

    @property
    def largest_useful_rank(self) -> int:
        """The largest rank at which the form stores less than what is stored now; 0 where there is none."""
        largest = FORMS[self.form].largest_useful_rank(self.shape)
        return largest if self.largest_useful is None else min(largest, self.largest_useful)


def natural_rank_multiple(shape: MatrixShape) -> int:
    """The multiple that ranks are aligned to when none is asked for.

    16 is the block of onnxruntime's convolutions and GEMM tiles on the CPU; smaller matrices get a finer grid, so that
    at least three ranks are left to choose from.
    """
    for multiple in (16, 8, 4, 2):
        if FORMS["pair"].largest_useful_rank(shape) + 1 >= 4 * multiple:
            return multiple
    return 1


def useful_ranks(weight: PlannedWeight, rank_multiple: int | None) -> tuple[int, ...]:
    """The ranks worth considering, ascending: multiples of `rank_multiple` at which the form stores less than dense."""
    multiple = rank_multiple or natural_rank_multiple(weight.shape)
    return tuple(range(multiple, weight.largest_useful_rank + 1, multiple))


def tail_energy(spectrum: Spectrum, rank: int) -> float:
    """||W - W_r||_F^2 / ||W||_F^2 from the leading singular values; 0 for a zero matrix.

    Raises
    ------
    ValueError
        If the spectrum holds fewer than `rank` values.
    """
    if rank > spectrum.values.shape[-1]:
        raise ValueError(f"rank {rank} is beyond the {spectrum.values.shape[-1]} singular values computed")
    if spectrum.energy == 0.0:
        return 0.0
    kept = float(np.sum(np.square(spectrum.values[..., :rank], dtype=np.float64)))
    return max(0.0, 1.0 - kept / spectrum.energy)


def dense_candidate(weight: PlannedWeight) -> Candidate:
    """The candidate that leaves `weight` as it is."""
    parameters = weight.shape.parameters
    macs = None if weight.positions is None else weight.positions * parameters
    return Candidate(DENSE, None, parameters, macs, error=0.0, latency_ms=_latency(weight, None))


def low_rank_candidate(weight: PlannedWeight, spectrum: Spectrum, rank: int) -> Candidate:
    """The candidate that writes `weight` at rank r in its form."""
    form = FORMS[weight.form]
    macs = None if weight.positions is None else form.macs(weight.shape, rank, weight.positions)
    error = weight.damage(tail_energy(spectrum, rank))
    return Candidate(weight.form, rank, form.parameters(weight.shape, rank), macs, error, _latency(weight, rank))


def _latency(weight: PlannedWeight, rank: int | None) -> float | None:
    return None if weight.latency is None else weight.latency(rank)


def maybe_faster(weight: PlannedWeight, rank: int) -> bool:
    """False where the weight was measured, and at this rank isn't faster than dense by more than the noise."""
    return weight.latency is None or weight.latency(rank) < weight.latency(None) * (1.0 - weight.noise)


def find_candidates(
    weight: PlannedWeight, spectrum: Spectrum, rank_multiple: int | None, *, only_faster: bool = False
) -> tuple[Candidate, ...]:
    """Every candidate of one weight by rising rank, "leave dense" last.

    With `only_faster`, ranks that were measured and aren't faster than dense by more than the noise are left out.
    """
    ranks = [rank for rank in useful_ranks(weight, rank_multiple) if not only_faster or maybe_faster(weight, rank)]
    return (*(low_rank_candidate(weight, spectrum, rank) for rank in ranks), dense_candidate(weight))
