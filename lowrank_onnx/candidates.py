"""For each weight, the ways to realise it: dense, or a form at a rank, each with its cost and its predicted damage."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lowrank_onnx.forms import EMBEDDING, PAIR, Form
from lowrank_onnx.types import Curves, ErrorCurve, MatrixShape, Tails

DENSE = "dense"
"""The form of a candidate that leaves the weight as it is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to realise a weight.

    Attributes
    ----------
    form : the name of one of the weight's forms, or "dense".
    rank : r, or None when dense.
    parameters : weights stored.
    macs : multiply-accumulates of one run over all sites that use the weight; None where no run was observed.
    error : predicted damage, from the tail energy ||W - W_r||_F^2 / ||W||_F^2 (in the norm of the weight's inputs where
        their second moment is known); 0 when dense.
    latency_ms : milliseconds of one run, added up over all sites that use the weight; None where it wasn't measured.
    stored_bytes : bytes of what is stored.
    members : where it stands for several weights at once, the candidate of each (`lowrank_onnx.bundles`).
    """

    form: str
    rank: int | None
    parameters: int
    macs: int | None
    error: float
    latency_ms: float | None = None
    stored_bytes: int = 0
    members: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """A weight as the planner sees it: no ONNX in it.

    `forms` are those in which it can be written, the plain one first; budgets that name a rank take that. `positions`
    is the total number of positions at which the sites that share the weight apply it in one run, or None where no run
    was observed. `damage` takes the relative squared tail energy of a rank to the planner's unit of
    damage; it must not fall as the tail grows, and be 0 at 0. `latency` takes a form's name and a rank (`DENSE`, None)
    to the milliseconds of one run over all sites of the weight; it is None where they weren't measured, and
    `unmeasured` then says why, if measuring was tried. Times that differ by no more than the share `noise` can't be
    told apart. `itemsize` is the bytes of one value of the factors. `room` is the number of values that factors must
    stay below to take fewer bytes than what is stored now, which may be narrower than they are; None where that is the
    weight's own number. `rank` is the only one that it may have, where the user said so; it is then not left dense, and
    need not be faster. In plans its damage counts `emphasis` times. At `lookups` of the positions rows are looked up by
    nodes that share the weight with others, which multiply.
    """

    name: str
    shape: MatrixShape
    forms: tuple[Form, ...]
    positions: int | None
    damage: Callable[[float], float] = field(default=float, compare=False)
    latency: Callable[[str, int | None], float] | None = field(default=None, compare=False)
    noise: float = 0.0
    unmeasured: str = ""
    itemsize: int = 4
    room: int | None = None
    rank: int | None = None
    emphasis: float = 1.0
    lookups: int = 0

    @property
    def plain(self) -> Form:
        """The form that a budget with a rank is about."""
        return self.forms[0]

    def form(self, name: str) -> Form:
        """One of its forms by name (`KeyError` where it has none of that name)."""
        return {form.name: form for form in self.forms}[name]

    @property
    def dense_macs(self) -> int | None:
        """Multiply-accumulates of one run as it is, where one was observed."""
        return None if self.positions is None else self.plain.dense_macs(self.shape, self.positions - self.lookups)

    def macs(self, form: Form, rank: int) -> int | None:
        """Multiply-accumulates of one run in a form at a rank, where one was observed."""
        if self.positions is None:
            return None
        multiplied = form.macs(self.shape, rank, self.positions - self.lookups)
        return multiplied + EMBEDDING.macs(self.shape, rank, self.lookups)

    def largest_useful_rank(self, form: Form) -> int:
        """The largest rank at which a form stores less than what is stored now; 0 where there is none."""
        largest = form.largest_useful_rank(self.shape)
        if self.room is None:
            return largest
        return bisect_left(range(1, largest + 1), self.room, key=lambda rank: form.parameters(self.shape, rank))


def natural_rank_multiple(shape: MatrixShape) -> int:
    """The multiple that ranks are aligned to when none is asked for.

    16 is the block of onnxruntime's convolutions and GEMM tiles on the CPU; smaller matrices get a finer grid, so that
    at least three ranks are left to choose from.
    """
    for multiple in (16, 8, 4, 2):
        if PAIR.largest_useful_rank(shape) + 1 >= 4 * multiple:
            return multiple
    return 1


def useful_ranks(weight: PlannedWeight, form: Form, rank_multiple: int | None) -> tuple[int, ...]:
    """The ranks worth considering, ascending: multiples of `rank_multiple` at which the form stores less than dense.

    Of a weight whose rank is given, that one, if the form stores less at it.
    """
    if weight.rank is not None:
        return (weight.rank,) if weight.rank <= weight.largest_useful_rank(form) else ()
    multiple = rank_multiple or natural_rank_multiple(weight.shape)
    return tuple(range(multiple, weight.largest_useful_rank(form) + 1, multiple))


def useful_options(weight: PlannedWeight, rank_multiple: int | None) -> tuple[tuple[Form, int], ...]:
    """Every form in which the weight can be written by itself, at each of its useful ranks."""
    return tuple(
        (form, rank)
        for form in weight.forms
        if form.bundle is None
        for rank in useful_ranks(weight, form, rank_multiple)
    )


def tail_energy(curve: ErrorCurve, rank: int) -> float:
    """||W - W_r||_F^2 / ||W||_F^2 of a factorization; 0 for a zero matrix.

    Raises
    ------
    ValueError
        If the error at this rank isn't known.
    """
    if isinstance(curve, Tails):
        if rank not in curve.ranks:
            raise ValueError(f"rank {rank} is none of the ranks measured: {', '.join(map(str, curve.ranks))}")
        return curve.errors[curve.ranks.index(rank)]
    if rank > curve.values.shape[-1]:
        raise ValueError(f"rank {rank} is beyond the {curve.values.shape[-1]} singular values computed")
    if curve.energy == 0.0:
        return 0.0
    kept = float(np.sum(np.square(curve.values[..., :rank], dtype=np.float64)))
    return max(0.0, 1.0 - kept / curve.energy)


def dense_candidate(weight: PlannedWeight) -> Candidate:
    """The candidate that leaves `weight` as it is."""
    parameters = weight.shape.parameters
    latency = None if weight.latency is None else weight.latency(DENSE, None)
    stored = (parameters if weight.room is None else weight.room) * weight.itemsize
    return Candidate(DENSE, None, parameters, weight.dense_macs, 0.0, latency, stored)


def low_rank_candidate(weight: PlannedWeight, form: Form, curves: Curves, rank: int) -> Candidate:
    """The candidate that writes `weight` in a form at rank r."""
    error = weight.damage(tail_energy(curves[form.family], rank))
    latency = None if weight.latency is None else weight.latency(form.name, rank)
    parameters = form.parameters(weight.shape, rank)
    return Candidate(form.name, rank, parameters, weight.macs(form, rank), error, latency, parameters * weight.itemsize)


def maybe_faster(weight: PlannedWeight, form: str, rank: int) -> bool:
    """False where the weight was measured, and so written isn't faster than dense by more than the noise.

    A rank that was given is not a matter of speed.
    """
    if weight.latency is None or weight.rank is not None:
        return True
    return weight.latency(form, rank) < weight.latency(DENSE, None) * (1.0 - weight.noise)


def find_candidates(
    weight: PlannedWeight, curves: Curves, rank_multiple: int | None, *, only_faster: bool = False
) -> tuple[Candidate, ...]:
    """Every candidate of one weight, form by form by rising rank, "leave dense" last.

    A weight whose rank is given has no "leave dense" beside the forms at that rank.

    With `only_faster`, those that were measured and aren't faster than dense by more than the noise are left out.
    """
    found = [
        low_rank_candidate(weight, form, curves, rank)
        for form, rank in useful_options(weight, rank_multiple)
        if is_known(curves.get(form.family), rank) and (not only_faster or maybe_faster(weight, form.name, rank))
    ]
    return tuple(found) if found and weight.rank is not None else (*found, dense_candidate(weight))


def is_known(curve: ErrorCurve | None, rank: int) -> bool:
    """Whether the error at a rank that is worth considering was computed."""
    return curve is not None and (not isinstance(curve, Tails) or rank in curve.ranks)
