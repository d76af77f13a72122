"""The tied form: nodes that read one matrix straight and transposed, or look its rows up, share one pair of factors.

A language model's table of tokens W (tokens, width) is looked up, W[ids], and is the output head, ``x @ W'``. With
W ~ L R the lookup is ``L[ids] @ R`` and the head ``(x @ R') @ L'``, so that L and R are stored once. In numbers it is
the pair of W for a node that multiplies, by W or by its transpose, and the embedding for one that looks up.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.forms.pair import Pair

TWO_SIDED = "two-sided"
"""The family of the tied form: a factorization whose error counts on both sides of the matrix."""


@dataclass(frozen=True, slots=True)
class Tied(Pair):
    """Two factors, "left" (1, in, r) and "right" (1, r, out); `macs` are those of a node that multiplies."""

    name: str = "tied"
    family: str = TWO_SIDED


TIED = Tied()
