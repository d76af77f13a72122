"""How often each row of a table is looked up: the second moment of one-hot rows, which is diagonal."""

from __future__ import annotations

import numpy as np

from lowrank_onnx.moments.gather_rows import RowsError
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.types import Array


class LookupSum:
    """Counts the rows of one table that are looked up.

    Parameters
    ----------
    size : rows of the table.
    """

    def __init__(self, size: int) -> None:
        self._counts = np.zeros(size, np.int64)

    @property
    def rows(self) -> int:
        """Rows that were looked up so far, repetitions included."""
        return int(self._counts.sum())

    def add(self, indices: Array) -> None:
        """Count the rows of one lookup; negative numbers count from the end.

        Raises
        ------
        RowsError : a number is outside of the table.
        """
        size = len(self._counts)
        flat = indices.reshape(-1)
        outside = flat[(flat < -size) | (flat >= size)]
        if outside.size:
            raise RowsError(f"looks up row {int(outside[0])} of a table of {size}")
        self._counts += np.bincount(np.where(flat < 0, flat + size, flat), minlength=size)

    def finish(self) -> Moment:
        """The moment, of which only the diagonal is kept: the share of the lookups that each row has."""
        rows = self.rows
        shares = (self._counts / rows)[None]
        return Moment(shares, shares, rows, rows)


def smoothed_shares(moment: Moment) -> Array:
    """(1, rows): how often each row is looked up, those that the feeds never showed included.

    As a whole, what was never seen is looked up about as often as what was seen exactly once (Good, "The population
    frequencies of species and the estimation of population parameters", Biometrika 40, 1953): that much of all lookups
    is spread evenly over the table, or one in all that were seen where none was seen once.
    """
    counts = moment.second_moment * moment.rows
    once = int(np.count_nonzero(np.rint(counts) == 1))
    share = max(once, 1) / moment.rows
    smoothed: Array = (1.0 - share) * moment.second_moment + share / moment.in_features
    return smoothed
