"""Factors on disk until the model is written, so that the memory needed does not grow with the model."""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lowrank_onnx.forms import Form
from lowrank_onnx.linalg.lapack import solver_of_small
from lowrank_onnx.model_io import SavedArray, save_array
from lowrank_onnx.types import Array, Factors, NewTensor, WeightRef, numpy_dtype, rearrange


@dataclass(frozen=True, slots=True)
class StoredFactors:
    """The factors of one weight, written in a form at a rank.

    Attributes
    ----------
    form : as the values need it (a pivoted form knows its pivots).
    rank : r.
    files : by part; with `nested` they hold larger ranks too, on an axis that is moved to the middle.
    dtype, accumulation : of the weight as it is stored, and of the values in the files.
    solver : what made them.
    """

    form: Form
    rank: int
    files: Mapping[str, SavedArray]
    nested: bool
    dtype: str
    accumulation: str
    solver: str

    def values(self, part: str) -> Array:
        """One part as it was computed, in the accumulation dtype."""
        if not self.nested:
            return self.files[part].read()
        prefix = np.array(self.files[part].mapped()[:, : self.rank])
        return prefix.transpose(0, 2, 1) if part == "left" else prefix

    def read(self, part: str) -> Array:
        """One part as it will be stored, in the weight's dtype."""
        return self.values(part).astype(numpy_dtype(self.dtype), copy=False)

    def parts(self) -> dict[str, Array]:
        """All parts with the values that they will be stored with, in the accumulation dtype."""
        return {part: self.read(part).astype(self.accumulation, copy=False) for part in self.files}

    def approximate(self) -> Array:
        """The matrices (groups, in, out) that will be stored in this form, in the accumulation dtype."""
        return self.form.approximate(self.parts())


Make: TypeAlias = Callable[[WeightRef, Form, int], tuple[Mapping[str, Array], str]]
"""From a weight, a form and a rank to the parts in the accumulation dtype, and what made them."""


class FactorSpool:
    """Factors by weight, in a directory that the caller owns and removes.

    A factorization whose smaller ranks are prefixes of the largest is kept once for all of them and for all forms of
    its family that are written as it lies. What is made for one form at one rank is kept under these, and goes before.

    Parameters
    ----------
    directory : where they are kept.
    make : makes the parts, and says how, of a form that comes from no factorization kept here, when they are first
        asked for; it raises `KeyError` for one that it doesn't know.
    """

    def __init__(self, directory: Path, make: Make | None = None) -> None:
        self._directory = directory
        self._make = make
        self._numbers = itertools.count()
        self._nested: dict[tuple[WeightRef, str], StoredFactors] = {}
        self._made: MutableMapping[tuple[WeightRef, str, int], StoredFactors] = {}
        self._borrowed: frozenset[tuple[WeightRef, str, int]] = frozenset()

    def branch(self) -> FactorSpool:
        """A spool with the same factors, of which some can be replaced without changing this one."""
        branch = FactorSpool(self._directory, self._make)
        branch._numbers = self._numbers
        branch._nested, branch._made = dict(self._nested), dict(self._made)
        branch._borrowed = frozenset((*self._borrowed, *self._made))
        return branch

    def drafts(self, make: Make) -> FactorSpool:
        """A spool that sees all that this one has and gets, and makes what is missing for itself alone, by `make`."""
        drafts = FactorSpool(self._directory, make)
        drafts._numbers, drafts._nested, drafts._made = self._numbers, self._nested, ChainMap({}, self._made)
        return drafts

    def adopt(self, stored: StoredFactors, weight: WeightRef) -> None:
        """Take factors that another branch has of a weight, in place of those that this one has."""
        self._made[weight, stored.form.name, stored.rank] = stored

    def put_nested(self, weight: WeightRef, family: str, form: Form, factors: Factors) -> None:
        """Keep a factorization W ~ left @ right of which every smaller rank is a prefix.

        `form` is a form of the family with these two parts.
        """
        parts = {"left": factors.left.transpose(0, 2, 1), "right": factors.right}
        files = {part: self._save(part, values) for part, values in parts.items()}
        accumulation = factors.left.dtype.name
        stored = StoredFactors(form, factors.rank, files, True, weight.dtype, accumulation, factors.solver)
        self._nested[weight, family] = stored

    def put(self, weight: WeightRef, form: Form, rank: int, parts: Mapping[str, Array], solver: str) -> None:
        """Keep the parts of one form at one rank, in the accumulation dtype; they replace earlier ones."""
        key = (weight, form.name, rank)
        replaced = None if key in self._borrowed else self._made.get(key)
        files = {part: self._save(part, values) for part, values in parts.items()}
        accumulation = next(iter(parts.values())).dtype.name
        self._made[key] = StoredFactors(form, rank, files, False, weight.dtype, accumulation, solver)
        self._borrowed -= {key}
        for saved in replaced.files.values() if replaced else ():
            saved.path.unlink()

    def get(self, weight: WeightRef, form: Form, rank: int) -> StoredFactors:
        """The factors of one weight in a form at a rank (`KeyError` where there are none, and none can be made)."""
        made = self._made.get((weight, form.name, rank))
        if made is not None:
            return made
        if self._make is not None and (weight, form.family) not in self._nested:
            self._keep(weight, form, rank, *self._make(weight, form, rank))
            return self._made[weight, form.name, rank]
        nested = self._nested[weight, form.family]
        if not 1 <= rank <= nested.rank or form.part_names != nested.form.part_names:
            raise KeyError(f"weight {weight.name!r} has no {form.name} at rank {rank}")
        return StoredFactors(form, rank, nested.files, True, nested.dtype, nested.accumulation, nested.solver)

    def fill(self, wanted: Iterable[tuple[WeightRef, Form, int, int]]) -> None:
        """Make those of some factors that are missing: weight, form, rank, multiplications.

        Small ones are made side by side, those with most work first: the last to end are then the shortest.
        """
        if (make := self._make) is None:
            return
        missing = [
            ((weight, form, rank), partial(make, weight, form, rank), work)
            for weight, form, rank, work in wanted
            if (weight, form.name, rank) not in self._made and (weight, form.family) not in self._nested
        ]
        missing.sort(key=lambda problem: -problem[2])
        with solver_of_small(True) as solve:
            for (weight, form, rank), (parts, solver) in solve(missing):
                self._keep(weight, form, rank, parts, solver)

    def _keep(self, weight: WeightRef, form: Form, rank: int, parts: Mapping[str, Array], solver: str) -> None:
        """`put` what was missing: who asked may hold on to it when better ones are put in its place."""
        self.put(weight, form, rank, parts, solver)
        self._borrowed |= {(weight, form.name, rank)}

    def tensor(self, new: NewTensor, form: Form, bias: Array | None = None) -> Array:
        """The values of a new initializer, in its stored layout and dtype; `bias` is the stored one it is made of."""
        stored = self.get(new.weight, form, new.rank)
        if bias is None:
            return rearrange(stored.read(new.part), new.arrangement)
        values = stored.form.write_bias(new.part, bias.astype(stored.accumulation), stored.parts())
        return rearrange(values.astype(numpy_dtype(new.dtype)), new.arrangement)

    def _save(self, part: str, values: Array) -> SavedArray:
        return save_array(self._directory / f"{next(self._numbers)}.{part}.bin", values)
