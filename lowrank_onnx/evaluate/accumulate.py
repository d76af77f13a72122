"""Running comparison of outputs over many feeds, in float64, with memory for a block of elements only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.evaluate.feed_arrays import is_float, shape_text
from lowrank_onnx.evaluate.logits import check_values
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.structure import ARRAY, brief, flatten
from lowrank_onnx.types import Array, OutputStatistics

_BLOCK = 1 << 20
"""Elements converted to float64 at a time."""

LEAST_CLASSES = 16
"""Entries of an output's last axis from which on it is told how much of its energy is a level common to each row. Of
fewer entries much is common by chance."""

_Doubles: TypeAlias = NDArray[np.float64]


class OutputComparison:
    """Compares the outputs of two models, feed after feed, each in the way that its kind asks for.

    Parameters
    ----------
    original : the original's session, which knows its outputs and which of them are logits.
    outputs : those to compare; None compares all of the original's.
    """

    def __init__(self, original: Runner, outputs: Sequence[str] | None = None) -> None:
        names = original.outputs if outputs is None else outputs
        self._outputs = [OutputAccumulator(name, logits=name in original.logits) for name in names]

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Take in what the original and the other model return for one feed (`UsageError` as in `check_values`)."""
        for output in self._outputs:
            output.add(expected[output.name], actual[output.name])

    def statistics(self) -> tuple[OutputStatistics, ...]:
        """What all feeds together say of each output, in order."""
        return tuple(output.statistics() for output in self._outputs)


class OutputAccumulator:
    """Compares one output of two models, feed after feed.

    - Floats: differences as numbers, accumulated in float64. An infinity of the original (a mask, say) has to be met
      by the same infinity; it takes no part in the sums.
    - Logits: floats of which only differences within a row (the last axis) mean anything, because all that reads them
      is a softmax. Each model's mean over a row is taken off the row before the comparison as above; entries that are
      not finite take no part in it.
    - Top-1: for float outputs of rank 2 or 3 whose last axis has at least two entries. A row agrees if every class
      that the candidate ranks first is ranked first by the original: ties of the original forgive, ties of the
      candidate (a constant output, say) don't.
    - Integers, bools and strings are answers rather than scores: class numbers have no distance that means anything.
      Their share of equal elements stands in the place of the top-1 agreement, and no other figure is given.
    - Sequences and maps have to have the same lengths and keys; their elements are compared as above, without top-1.
    """

    def __init__(self, name: str, *, logits: bool) -> None:
        self.name = name
        self._logits = logits
        self._dtype = ""
        self._elements = 0
        self._compared = 0
        self._max_abs = 0.0
        self._reference_squares = 0.0
        self._candidate_squares = 0.0
        self._difference_squares = 0.0
        self._dot = 0.0
        self._level_squares = 0.0
        self._levels_known = True
        self._agreeing = 0
        self._judged = 0
        self._rows = 0
        self._numbers = self._answers = False
        self._changes: dict[str, None] = {}  # an ordered set
        self._counts: Counter[str] = Counter()

    def add(self, original: Any, candidate: Any) -> None:
        """Take in the two models' values for one feed."""
        if self._logits:
            check_values(self.name, original)
        structure, originals = flatten(original)
        candidate_structure, candidates = flatten(candidate)
        if structure != candidate_structure:
            self._changes[f"its structure changed from {brief(structure)} to {brief(candidate_structure)}"] = None
            return
        nested = structure != ARRAY
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
            logits=self._logits,
            common_level=None if problems else self._common_level(),
        )

    def _common_level(self) -> float | None:
        """The share of the original's energy that is the mean of each row; None where rows mean nothing."""
        rest = self._reference_squares if self._logits else self._reference_squares - self._level_squares
        energy = self._level_squares + max(rest, 0.0)
        return self._level_squares / energy if self._levels_known and energy > 0.0 else None

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
            rows_mean_classes = not nested and original.ndim in (2, 3)
            self._levels_known &= self._logits or (rows_mean_classes and original.shape[-1] >= LEAST_CLASSES)
            self._add_numbers(original, candidate)
            if rows_mean_classes and original.shape[-1] >= 2:
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
        if not self._levels_known:
            rows_original, rows_candidate = original.reshape(1, -1), candidate.reshape(1, -1)
        else:
            shape = (math.prod(original.shape[:-1]), original.shape[-1])
            rows_original, rows_candidate = original.reshape(shape), candidate.reshape(shape)
        for block in _slices(len(rows_original), max(1, _BLOCK // max(1, rows_original.shape[1]))):
            self._add_rows(rows_original[block], rows_candidate[block])

    def _add_rows(self, original: Array, candidate: Array) -> None:
        """Rows of a block together, or one row that may be longer."""
        levels = None
        if self._levels_known:
            counts, means = _row_means(original, candidate)
            with np.errstate(over="ignore", invalid="ignore"):
                self._level_squares += float(np.dot(counts, means[0] ** 2))
            levels = means if self._logits else None
        for part in _slices(original.shape[1], _BLOCK):
            self._add_block(original[:, part], candidate[:, part], levels)

    def _add_block(self, original: Array, candidate: Array, levels: _Doubles | None) -> None:
        y, z = original.astype(np.float64), candidate.astype(np.float64)
        finite = np.isfinite(y)
        valid = finite & np.isfinite(z)
        if not valid.all():
            self._counts["original NaN"] += int(np.count_nonzero(np.isnan(y)))
            self._counts["not finite"] += int(np.count_nonzero(finite & ~valid))
            self._counts["infinities"] += int(np.count_nonzero(np.isinf(y) & (y != z)))
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is reported as a problem
            if levels is not None:
                y, z = y - levels[0][:, None], z - levels[1][:, None]
            y, z = (y.ravel(), z.ravel()) if valid.all() else (y[valid], z[valid])
            if not y.size:
                return
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


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _row_means(original: Array, candidate: Array) -> tuple[_Doubles, _Doubles]:
    """Per row, how many entries are finite in both models (rows,), and each model's mean over these (2, rows)."""
    counts, sums = np.zeros(len(original)), np.zeros((2, len(original)))
    for part in _slices(original.shape[1], _BLOCK):
        pair = original[:, part], candidate[:, part]
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.array([values.sum(axis=1, dtype=np.float64) for values in pair])
            if np.isfinite(found).all():
                counts += pair[0].shape[1]
            else:
                valid = np.isfinite(pair[0]) & np.isfinite(pair[1])
                counts += np.count_nonzero(valid, axis=1)
                found = np.array([values.sum(axis=1, dtype=np.float64, where=valid) for values in pair])
            sums += found
    return counts, sums / np.maximum(counts, 1.0)


def _ranked_first(scores: _Doubles) -> NDArray[np.bool_]:
    """Per row, the classes with the largest score; none in a row that holds NaN."""
    first: NDArray[np.bool_] = scores == scores.max(axis=1, keepdims=True)
    return first


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
