"""From factors L R to the pivoted form, and how much each of the two rounds in a dtype.

With a block B of r columns of R as pivots, ``L R = (L B) (inverse(B) R)``, where ``inverse(B) R`` has the identity at
the pivots (PIFA, arXiv 2501.19090). What B's condition costs in the stored dtype is not assumed but measured, on inputs
like those that the weight sees: leading columns do well on most trained weights and badly on a few.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.linalg.weighted import FLOOR

PROBES = 64
"""Inputs on which rounding is measured."""


@dataclass(frozen=True, slots=True)
class PivotedFactors:
    """``L R ~ left @ [before I after]`` in float64, with the pivots at columns `start` to `start` + r.

    `left` is (in, r), `before` (r, start), `after` (r, out - r - start).
    """

    start: int
    left: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]


def pivot_factors(left: NDArray[Any], right: NDArray[Any], start: int) -> PivotedFactors | None:
    """Make the columns from `start` on the pivots of ``left @ right``, left (in, r), right (r, out).

    Returns None where the pivots are exactly dependent. How well those serve that nearly are is for the rounding to
    say.

    Raises
    ------
    FactorizationError
        r columns from `start` on don't lie within the matrix.
    """
    rank, out_features = right.shape
    if not 0 <= start <= out_features - rank:
        raise FactorizationError(f"pivots from column {start} on: expected 0 to {out_features - rank}")
    right = right.astype(np.float64)
    pivots = right[:, start : start + rank]
    others = np.concatenate((right[:, :start], right[:, start + rank :]), axis=1)
    try:
        solved = np.linalg.solve(pivots, others)
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(solved).all():
        return None
    return PivotedFactors(start, left.astype(np.float64) @ pivots, solved[:, :start], solved[:, start:])


def pivot_order(right: NDArray[Any]) -> tuple[int, ...]:
    """The columns of ``right`` (r, out) in an order in which the first r of them are good pivots.

    They are those that QR with column pivoting takes (Businger and Golub, Numerische Mathematik 7, 1965): each the
    farthest from the span of those before it. Pivots and others keep their order among themselves.
    """
    rank, out_features = right.shape
    taken = scipy.linalg.qr(right.astype(np.float64), mode="r", pivoting=True)[1][:rank]
    others = np.setdiff1d(np.arange(out_features), taken)
    return tuple(int(column) for column in (*np.sort(taken), *others))


def rounding_of_pair(
    left: NDArray[Any],
    right: NDArray[Any],
    inputs: NDArray[np.float64],
    dtype: np.dtype[Any],
    bias: NDArray[Any] | None = None,
) -> float:
    """``||y as computed - y||_F / ||x L R||_F`` of ``y = x L R + bias``, with all that is stored or made in `dtype`.

    `bias` (out,) is what the node adds, where it adds something.
    """
    found = _product(_product(inputs, left, dtype), right, dtype, bias)
    return _distance(_exact(inputs, left, right, dtype), [found], bias)


def rounding_of_pivoted(
    left: NDArray[Any],
    right: NDArray[Any],
    pivoted: PivotedFactors,
    inputs: NDArray[np.float64],
    dtype: np.dtype[Any],
    bias: NDArray[Any] | None = None,
) -> float:
    """The same for the pivoted form of these factors.

    Its bias is added to the pivots and taken off again by the others (`lowrank_onnx.forms.pivoted`): a pivot that is
    small beside its bias, an output that is all but dead, say, is rounded as coarsely as the bias, and the columns that
    it takes part in blow that up.
    """
    rank = pivoted.left.shape[1]
    stop = pivoted.start + rank
    of_pivots = of_before = of_after = None
    if bias is not None:
        wide = bias.astype(np.float64)
        of_pivots = wide[pivoted.start : stop]
        of_before = wide[: pivoted.start] - of_pivots @ pivoted.before
        of_after = wide[stop:] - of_pivots @ pivoted.after
    pivots = _product(inputs, pivoted.left, dtype, of_pivots)
    before, after = (
        _product(pivots, others, dtype, of_others)
        for others, of_others in ((pivoted.before, of_before), (pivoted.after, of_after))
    )
    return _distance(_exact(inputs, left, right, dtype), [before, pivots, after], bias)


def _exact(
    inputs: NDArray[np.float64], left: NDArray[Any], right: NDArray[Any], dtype: np.dtype[Any]
) -> NDArray[np.float64]:
    rounded = inputs.astype(dtype).astype(np.float64)
    exact: NDArray[np.float64] = (rounded @ left.astype(np.float64)) @ right.astype(np.float64)
    return exact


def _product(a: NDArray[Any], b: NDArray[Any], dtype: np.dtype[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """A B + bias with A, B, the bias and the result in `dtype`, accumulated as a runtime does."""
    wide = accumulation_dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        product = a.astype(dtype).astype(wide) @ b.astype(dtype).astype(wide)
        if bias is not None:
            product = product + bias.astype(dtype).astype(wide)
        stored: NDArray[Any] = product.astype(dtype)
    return stored


def _distance(exact: NDArray[np.float64], blocks: Iterable[NDArray[Any]], bias: NDArray[Any] | None) -> float:
    """How far the blocks side by side are from the exact product and the bias, relative to the product alone."""
    found = np.concatenate([block.astype(np.float64) for block in blocks], axis=1)
    size = float(np.linalg.norm(exact))
    missed = float(np.linalg.norm(found - (exact if bias is None else exact + bias.astype(np.float64))))
    if not np.isfinite(missed):
        return float("inf")
    return missed / size if size else float(missed > 0.0)


def draw_inputs(in_features: int, second_moment: NDArray[Any] | None, seed: int) -> NDArray[np.float64]:
    """`PROBES` inputs (PROBES, in) with the given second moment (in, in), or independent standard normal ones.

    They have the moment's diagonal, and of the rest its Nystrom approximation from a Gaussian sketch of `PROBES`
    columns (Gittens and Mahoney, JMLR 17(117), 2016): the directions that inputs have most of their energy in. A root
    of the whole moment would take longer than all else that is done with these inputs.

    The moment is one that factors were made with: it isn't checked again.
    """
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((PROBES, in_features))
    if second_moment is None:
        return normal
    diagonal = np.diagonal(second_moment)
    scale = float(np.mean(diagonal))
    root = scale**-0.5  # half of the scale before the product and half after it: no square leaves the range
    sketch = root * ((root * normal) @ second_moment)
    values, vectors = np.linalg.eigh(sketch @ normal.T)
    kept = values > FLOOR * values[-1]
    leading = (vectors[:, kept].T @ sketch) / np.sqrt(values[kept])[:, None]
    others = np.clip(diagonal / scale - np.sum(np.square(leading), axis=0), 0.0, None)
    drawn = generator.standard_normal((PROBES, len(leading))) @ leading
    drawn = drawn + generator.standard_normal(normal.shape) * np.sqrt(others)
    inputs: NDArray[np.float64] = drawn * np.sqrt(scale)
    return inputs
