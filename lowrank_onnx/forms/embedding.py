"""The embedding: rows of a table W are looked up in L, and multiplied by R.

A lookup multiplies nothing, so this costs r out multiply-accumulates a row where dense costs none: it saves what is
stored and read, never arithmetic. In numbers it is the pair of the matrix that a one-hot row would be multiplied by.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.forms.pair import Pair
from lowrank_onnx.types import MatrixShape

LOOKUP = "table"
"""The family of the embedding: a factorization of a table whose rows count as often as they are looked up."""


@dataclass(frozen=True, slots=True)
class Embedding(Pair):
    """Two factors, "left" (1, rows of the table, r) and "right" (1, r, out)."""

    name: str = "embedding"
    family: str = LOOKUP

    def macs(self, shape: MatrixShape, rank: int, positions: int) -> int:
        """Those of the second factor, for each row that is looked up."""
        return positions * rank * shape.out_features

    def dense_macs(self, shape: MatrixShape, positions: int) -> int:
        """None."""
        del shape, positions
        return 0


EMBEDDING = Embedding()
