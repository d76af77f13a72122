"""Running comparison of one output over many feeds, in float64, with memory for a block of elements only."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.evaluate.feed_arrays import is_float, shape_text
from lowrank_onnx.types import Array, OutputStatistics

_BLOCK = 1 << 20
"""Elements converted to float64 at a time."""

_Doubles: TypeAlias = NDArray[np.float64]


class OutputAccumulator:
    """Compares one output of two models, feed after feed.

    - Floats: differences as numbers, accumulated in float64. An infinity of the original (a mask, say) has to be met
      by the same infinity; it takes no part in the sums.
    - Top-1: for float outputs of rank 2 or 3 whose last axis has at least two entries. A row agrees if every class
      that the candidate ranks first is ranked first by the original: ties of the original forgive, ties of the
      candidate (a constant output, say) don't.
    - Integers, bools and strings are answers rather than scores: class numbers have no distance that means anything.
      Their share of equal elements stands in the place of the top-1 agreement, and no other figure is given.
    - Sequences and maps have to have the same lengths and keys; their elements are compared as above, without top-1.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._dtype = ""
        self._elements = 0
        self._compared = 0
        self._max_abs = 0.0
        self._reference_squares = 0.0
        self._candidate_squares = 0.0
        self._difference_squares = 0.0
        self._dot = 0.0
        self._agreeing = 0
        self._judged = 0
        self._rows = 0
        self._numbers = self._answers = False
        self._changes: dict[str, None] = {}  # an ordered set
        self._counts: Counter[str] = Counter()

    def add(self, original: Any, candidate: Any) -> None:
        """Take in the two models' values for one feed."""
        structure, originals = _flatten(original)
        candidate_structure, candidates = _flatten(candidate)
        if structure != candidate_structure:
            self._changes[f"its structure changed from {_brief(structure)} to {_brief(candidate_structure)}"] = None
            return
        nested = structure != _ARRAY
        if nested:
            self._dtype = "map" if "{" in structure else "sequence" if "[" in structure else "optional"
        for left, right in zip(originals, candidates, strict=True):
            self._add_arrays(left, right, nested=nested)

    def statistics(self) -> OutputStatistics:
        """What all feeds together say.

        A comparison with problems has the worst figures, so that none can pass for sound.
        """
        problems = self._problems()
        figures: tuple[float | None, ...]
        if problems:
            figures = (math.inf, math.inf, -math.inf, 0.0)
        elif self._answers and not self._numbers:
            figures = (None,) * 4
        else:
            reference, difference = math.sqrt(self._reference_squares), math.sqrt(self._difference_squares)
            candidate = math.sqrt(self._candidate_squares)
            figures = (
                self._max_abs,
                _ratio(difference, reference),
                _decibels(reference, difference),
                _cosine(self._dot, reference, candidate),
            )
        return OutputStatistics(
            name=self.name,
            dtype=self._dtype,
            elements=self._elements,
            max_abs=figures[0],
            relative_l2=figures[1],
            sqnr_db=figures[2],
            cosine=figures[3],
            top1_agreement=self._agreeing / self._judged if self._judged else None,
            problems=problems,
            top1_rows=self._rows if self._rows == self._judged else 0,
        )

    def _problems(self) -> tuple[str, ...]:
        problems = [*self._changes]
        if self._counts["original NaN"]:
            problems.append(f"the original's output holds {self._counts['original NaN']} NaN: choose other feeds")
        if self._counts["not finite"]:
            problems.append(
                f"the candidate has {self._counts['not finite']} NaN or infinite values where the original is finite"
            )
        if self._counts["infinities"]:
            problems.append(f"{self._counts['infinities']} infinities of the original are not reproduced")
        if not problems and not self._compared:
            problems.append("nothing was compared: it has no finite elements on these feeds")
        sums = (self._reference_squares, self._candidate_squares, self._difference_squares, self._dot)
        if not problems and not all(map(math.isfinite, sums)):
            problems.append("its values are too large to compare in float64")
        return tuple(problems)

    def _add_arrays(self, original: Array, candidate: Array, *, nested: bool) -> None:
        if not nested:
            self._dtype = "string" if original.dtype.kind in "OUST" else original.dtype.name
        if original.dtype != candidate.dtype and not (original.dtype.kind in "OUST" and candidate.dtype.kind in "OUST"):
            self._changes[f"its dtype changed from {original.dtype.name} to {candidate.dtype.name}"] = None
            return
        if original.shape != candidate.shape:
            self._changes[f"its shape changed from {shape_text(original.shape)} to {shape_text(candidate.shape)}"] = (
                None
            )
            return
        self._elements += original.size
        if is_float(original.dtype):
            self._numbers = True
            self._add_numbers(original, candidate)
            if not nested and original.ndim in (2, 3) and original.shape[-1] >= 2:
                self._add_top1(original, candidate)
        elif original.dtype.kind in "OUSTiub":
            self._answers = True
            self._add_equality(original, candidate, nested=nested)
        else:
            self._changes[f"its dtype {original.dtype.name} can't be compared"] = None

    def _add_equality(self, original: Array, candidate: Array, *, nested: bool) -> None:
        self._compared += original.size
        self._judged += original.size
        self._agreeing += int(np.count_nonzero(original == candidate))
        if not nested and original.ndim >= 1 and original.size == len(original):
            self._rows += len(original)

    def _add_numbers(self, original: Array, candidate: Array) -> None:
        flat_original, flat_candidate = original.reshape(-1), candidate.reshape(-1)
        for start in range(0, flat_original.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add_block(flat_original[block], flat_candidate[block])

    def _add_block(self, original: Array, candidate: Array) -> None:
        y, z = original.astype(np.float64), candidate.astype(np.float64)
        finite = np.isfinite(y)
        valid = finite & np.isfinite(z)
        if not valid.all():
            self._counts["original NaN"] += int(np.count_nonzero(np.isnan(y)))
            self._counts["not finite"] += int(np.count_nonzero(finite & ~valid))
            self._counts["infinities"] += int(np.count_nonzero(np.isinf(y) & (y != z)))
            y, z = y[valid], z[valid]
        if not y.size:
            return
        with np.errstate(over="ignore"):  # an overflow is reported as a problem
            difference = z - y
            self._compared += y.size
            self._max_abs = max(self._max_abs, float(np.abs(difference).max()))
            self._reference_squares += float(np.dot(y, y))
            self._candidate_squares += float(np.dot(z, z))
            self._difference_squares += float(np.dot(difference, difference))
            self._dot += float(np.dot(y, z))

    def _add_top1(self, original: Array, candidate: Array) -> None:
        classes = original.shape[-1]
        rows_original, rows_candidate = original.reshape(-1, classes), candidate.reshape(-1, classes)
        step = max(1, _BLOCK // classes)
        for start in range(0, len(rows_original), step):
            block = slice(start, start + step)
            first = _ranked_first(rows_original[block].astype(np.float64))
            candidate_first = _ranked_first(rows_candidate[block].astype(np.float64))
            agrees = candidate_first.any(axis=1) & ~(candidate_first & ~first).any(axis=1)
            self._agreeing += int(np.count_nonzero(agrees))
            self._judged += len(first)
        if original.ndim == 2:  # with one more axis, rows share a sample
            self._rows += len(rows_original)


def _ranked_first(scores: _Doubles) -> NDArray[np.bool_]:
    """Per row, the classes with the largest score; none in a row that holds NaN."""
    first: NDArray[np.bool_] = scores == scores.max(axis=1, keepdims=True)
    return first


_ARRAY = "*"


def _flatten(value: Any) -> tuple[str, list[Array]]:
    """The structure of an output as text, and its arrays in a fixed order."""
    if value is None:
        return "none", []
    if isinstance(value, dict):
        keys = sorted(value, key=repr)
        values = [value[key] for key in keys]
        if all(np.ndim(entry) == 0 for entry in values):
            return "{" + ",".join(map(repr, keys)) + "}", [np.asarray(values)]
        parts = [_flatten(entry) for entry in values]
        text = "{" + ",".join(f"{key!r}:{part[0]}" for key, part in zip(keys, parts, strict=True)) + "}"
        return text, [array for part in parts for array in part[1]]
    if isinstance(value, (list, tuple)):
        parts = [_flatten(entry) for entry in value]
        return "[" + ",".join(part[0] for part in parts) + "]", [array for part in parts for array in part[1]]
    return _ARRAY, [np.asarray(value)]


def _brief(structure: str) -> str:
    names = {_ARRAY: "a tensor", "none": "nothing"}
    return names.get(structure, structure if len(structure) <= 60 else f"{structure[:60]}...")


def _ratio(difference: float, reference: float) -> float:
    if reference > 0.0:
        return difference / reference
    return 0.0 if difference == 0.0 else math.inf


def _decibels(reference: float, difference: float) -> float:
    if difference == 0.0:
        return math.inf
    return 20.0 * math.log10(reference / difference) if reference > 0.0 else -math.inf


def _cosine(dot: float, reference: float, candidate: float) -> float:
    if reference == 0.0 or candidate == 0.0:
        return 1.0 if reference == candidate else 0.0
    return min(1.0, max(-1.0, dot / (reference * candidate)))
