"""The factors of convolutions that are written as chains of convolutions: their errors by rank, and their parts.

What takes longest, the leading factor and what follows from it, is found once at the largest rank that is wanted and
kept on disk: its leading part serves every smaller rank. From that alone come drafts, the parts before any sweep, which
are all that comparing plans asks for; sweeps need the kernel and the moment of its inputs again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.candidates import natural_rank_multiple
from lowrank_onnx.config import Device
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.forms import Form
from lowrank_onnx.forms.conv_chain import ConvChain
from lowrank_onnx.forms.conv_spatial import ConvSpatial
from lowrank_onnx.forms.conv_tucker import ConvTucker
from lowrank_onnx.linalg.backend import select_backend
from lowrank_onnx.linalg.folded import Folded
from lowrank_onnx.linalg.leading import LeadingFamily, PatchProblem, Projection, patch_problem
from lowrank_onnx.linalg.tucker import factor_tucker, tucker_errors
from lowrank_onnx.model_io import Model, SavedArray, save_array
from lowrank_onnx.types import Array, MatrixShape, Rearrangement, Tails, WeightRef, rearrange
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight

SWEEPS = 1
"""Of alternating least squares for the factors that are written: a second one gains a tenth of what the first does."""

DRAFT = "draft"
"""What made parts that no sweep was spent on, where there may be sweeps."""


MOST_TUCKER_RANKS = 16
"""For which the errors of a kernel's Tucker-2 are found: as fine as plans over many weights need."""


@dataclass(frozen=True, slots=True)
class ChainWeight:
    """A stored kernel to be written as a chain.

    Attributes
    ----------
    weight : where it is stored.
    stored : its values, in the stored layout and dtype.
    to_matrices : from there to (groups, in, out).
    second_moment : (groups, in, in) of its inputs, or None.
    device : where to compute.
    """

    weight: WeightRef
    stored: Array
    to_matrices: Rearrangement
    second_moment: Array | None
    device: Device

    @property
    def shape(self) -> MatrixShape:
        """(groups, in, out)."""
        return MatrixShape(*self.to_matrices.merged)

    @property
    def solver(self) -> str:
        """What makes the factors."""
        return "svd" if self.second_moment is None else f"als({SWEEPS} sweep), weighted"


@dataclass(frozen=True, slots=True)
class _KeptFit:
    """A fit in files: the arrays of its projection, in the accumulation dtype but for `first`; and the rest of it."""

    outline: Folded
    errors: NDArray[np.float64]
    dtype: np.dtype[Any]
    first: SavedArray
    root: SavedArray | None
    captured: SavedArray

    def family(self, rank: int, device: Device) -> LeadingFamily:
        """The fit up to a rank, without the metric: it can't be swept."""
        backend = select_backend(device)
        rows = rank * self.outline.weight.shape[1]
        projection = Projection(
            backend.to_device(np.array(self.first.mapped()[:, :rank], self.dtype)),
            None if self.root is None else backend.to_device(np.array(self.root.mapped()[:rows, :rows])),
            backend.to_device(np.array(self.captured.mapped()[:rows])),
        )
        return LeadingFamily(backend, self.outline, projection, self.dtype, self.errors[:rank])


class LeadingBases:
    """The fits of kernels at the largest rank that is wanted, in a directory that the caller owns.

    Parameters
    ----------
    directory : where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._largest: dict[tuple[WeightRef, tuple[int, ...]], int] = {}
        self._kept: dict[tuple[WeightRef, tuple[int, ...]], tuple[_KeptFit, ...]] = {}
        self._numbers = itertools.count()

    def expect(self, kernel: ChainWeight, form: ConvChain, rank: int) -> None:
        """Say that no rank above this one will be asked for of forms with the same leading axes."""
        key = (kernel.weight, leading_axes(form))
        self._largest[key] = max(rank, self._largest.get(key, 0))

    def keep(self, kernel: ChainWeight, form: ConvChain, fits: Sequence[LeadingFamily]) -> None:
        """Keep what was found; `fits` has one entry for each group."""
        number = next(self._numbers)
        self._kept[kernel.weight, leading_axes(form)] = tuple(
            self._save(fit, f"fit.{number}.{group}") for group, fit in enumerate(fits)
        )

    def find(self, kernel: ChainWeight, form: ConvChain, rank: int) -> Sequence[Array | None]:
        """The leading factor of each group at this rank or a larger one, found first if need be; None where unknown."""
        key = (kernel.weight, leading_axes(form))
        if rank > self._largest.get(key, 0):
            return (None,) * kernel.shape.groups
        if key not in self._kept:
            self.keep(kernel, form, _fit(kernel, form, self._largest[key]))
        return [kept.first.read() for kept in self._kept[key]]

    def draft(
        self, weight: WeightRef, form: ConvChain, shape: MatrixShape, rank: int, device: Device
    ) -> dict[str, Array] | None:
        """The parts at a rank before any sweep, without a look at the weight; None where no fit is kept for it."""
        kept = self._kept.get((weight, leading_axes(form)), ())
        if not kept or rank > kept[0].errors.size:
            return None
        return family_parts([one.family(rank, device) for one in kept], form, shape, rank, sweeps=0)

    def _save(self, fit: LeadingFamily, name: str) -> _KeptFit:
        def save(part: str, values: Array) -> SavedArray:
            return save_array(self._directory / f"{name}.{part}.bin", values)

        projection, to_host = fit.projection, fit.backend.to_host
        root = None if projection.root is None else save("root", to_host(projection.root).astype(fit.dtype))
        captured = save("captured", to_host(projection.captured).astype(fit.dtype))
        return _KeptFit(fit.folded.outline(), fit.errors, fit.dtype, save("first", fit.first), root, captured)


def chain_maker(
    model: Model,
    groups: Sequence[SharedWeight],
    second_moments: Mapping[WeightRef, Array],
    device: Device,
    bases: LeadingBases | None = None,
    sweeps: int = SWEEPS,
) -> Callable[[WeightRef, Form, int], tuple[Mapping[str, Array], str]]:
    """Makes the parts of chains of convolutions, for a `FactorSpool`; each kernel is read when it is needed.

    `bases` and `sweeps` are as for `chain_parts`.
    """
    weights = WeightReader(model, (group.weight for group in groups))
    arrangements = {group.weight: group.sites[0].to_matrices for group in groups}

    def make(weight: WeightRef, form: Form, rank: int) -> tuple[Mapping[str, Array], str]:
        if not isinstance(form, ConvChain):
            raise KeyError(f"weight {weight.name!r} has no {form.name} at rank {rank}")
        if bases is not None and not sweeps:
            drafted = bases.draft(weight, form, MatrixShape(*arrangements[weight].merged), rank, device)
            if drafted is not None:
                return drafted, DRAFT
        kernel = ChainWeight(weight, weights.read(weight), arrangements[weight], second_moments.get(weight), device)
        return chain_parts(kernel, form, rank, bases, sweeps=sweeps), kernel.solver

    return make


def chain_ranks(shape: MatrixShape, form: ConvChain, largest: int) -> tuple[int, ...]:
    """All ranks where one decomposition gives all errors; for Tucker-2, where each takes one of its own, a grid."""
    if not isinstance(form, ConvTucker):
        return tuple(range(1, largest + 1))
    multiple = natural_rank_multiple(shape)
    step = multiple * max(1, math.ceil(largest / multiple / MOST_TUCKER_RANKS))
    return tuple(dict.fromkeys((*range(step, largest + 1, step), largest)))


def chain_errors(
    kernel: ChainWeight, asked: Sequence[tuple[ConvChain, Sequence[int]]], bases: LeadingBases | None = None
) -> tuple[Tails, ...]:
    """The relative squared errors over all groups, in the norm of the inputs where known, of forms at ascending ranks.

    They are those of the factors before `SWEEPS`, which only lower them. Forms with the same leading axes share a fit,
    whose leading factor is left in `bases`.

    Raises
    ------
    FactorizationError
        If the weight isn't finite; the message names it.
    """
    found: dict[int, Tails] = {}
    problems = _problems(kernel, asked[0][0])
    for axes in dict.fromkeys(leading_axes(form) for form, _ in asked):
        alike = [number for number, (form, _) in enumerate(asked) if leading_axes(form) == axes]
        largest = max(max(asked[number][1]) for number in alike)
        fits = [problem.fit(axes, largest) for problem in problems]
        if bases is not None:
            bases.keep(kernel, asked[alike[0]][0], fits)
        found.update((number, _tails(fits, *asked[number], kernel.shape)) for number in alike)
    return tuple(found[number] for number in range(len(asked)))


def _tails(fits: Sequence[LeadingFamily], form: ConvChain, ranks: Sequence[int], shape: MatrixShape) -> Tails:
    energy = sum(fit.energy for fit in fits)
    missed = np.sum([fit.energy * _errors(fit, form, shape, ranks) for fit in fits], axis=0)
    errors = missed / energy if energy else np.zeros(len(ranks))
    return Tails(tuple(ranks), tuple(float(error) for error in errors))


def chain_parts(
    kernel: ChainWeight, form: ConvChain, rank: int, bases: LeadingBases | None = None, *, sweeps: int = SWEEPS
) -> dict[str, Array]:
    """The parts at a rank, in the accumulation dtype, after so many sweeps, from the leading factor in `bases`.

    Raises
    ------
    FactorizationError
        If the weight isn't finite; the message names it.
    """
    known = None if bases is None else bases.find(kernel, form, rank)
    if bases is not None and not sweeps:
        drafted = bases.draft(kernel.weight, form, kernel.shape, rank, kernel.device)
        if drafted is not None:
            return drafted
    return family_parts(_fit(kernel, form, rank, known), form, kernel.shape, rank, sweeps=sweeps)


def family_parts(
    fits: Sequence[LeadingFamily], form: ConvChain, shape: MatrixShape, rank: int, *, sweeps: int
) -> dict[str, Array]:
    """The parts at a rank from the fit of each group, after at most so many sweeps of alternating least squares."""
    solved = [_factor(fit, form, shape, rank, sweeps) for fit in fits]
    return {
        link.part: np.stack([parts[index].reshape(-1, link.outputs) for parts in solved])
        for index, link in enumerate(form.links(shape, rank))
    }


def leading_axes(form: ConvChain) -> tuple[int, ...]:
    """The axes of a patch, (channels, kernel axes...), that the first convolution contracts."""
    return (0, 1 + form.axis) if isinstance(form, ConvSpatial) else (0,)


def _fit(
    kernel: ChainWeight, form: ConvChain, rank: int, known: Sequence[Array | None] | None = None
) -> list[LeadingFamily]:
    """One for each group, from its leading factor where that is known."""
    firsts = known or (None,) * kernel.shape.groups
    return [
        problem.fit(leading_axes(form), rank, first=first)
        for problem, first in zip(_problems(kernel, form), firsts, strict=True)
    ]


def _problems(kernel: ChainWeight, form: ConvChain) -> list[PatchProblem]:
    """That of each group; the form is any of the kernel's."""
    axes = (form.geometry.channels, *form.geometry.kernel)
    backend, problems = select_backend(kernel.device), []
    for group, matrix in enumerate(rearrange(kernel.stored, kernel.to_matrices)):
        moment = None if kernel.second_moment is None else kernel.second_moment[group]
        try:
            problems.append(patch_problem(backend, matrix.reshape(*axes, -1), moment))
        except FactorizationError as error:
            raise FactorizationError(f"weight {kernel.weight.name!r}: {error}") from error
    return problems


def _errors(fit: LeadingFamily, form: ConvChain, shape: MatrixShape, ranks: Sequence[int]) -> Array:
    if not isinstance(form, ConvTucker):
        known: Array = fit.errors[np.asarray(ranks) - 1]
        return known
    inner = [form.output_rank(shape, rank) - 1 for rank in ranks]
    table: Array = tucker_errors(fit, ranks)[np.arange(len(inner)), inner]
    return table


def _factor(fit: LeadingFamily, form: ConvChain, shape: MatrixShape, rank: int, sweeps: int) -> tuple[Array, ...]:
    if not isinstance(form, ConvTucker):
        two = fit.factors(rank, sweeps=sweeps)
        return two.first, two.second
    three = factor_tucker(fit, (rank, form.output_rank(shape, rank)), sweeps=sweeps)
    return three.first, three.core, three.last
