"""How many insertions, deletions and substitutions lie between what was said and what was recognised."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The fewest edits that make one sequence the other (Levenshtein)."""
    return edits_to_prefixes(first, second)[-1]


def edits_to_prefixes(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[int]:
    """The fewest edits that make the first sequence the start of the second, by that start's length, from 0 on."""
    row = list(range(len(second) + 1))
    for index, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (item != other))
    return row


def error_rate(pairs: Iterable[tuple[Sequence[Hashable], Sequence[Hashable]]]) -> float:
    """Edits over the length of all references; each pair is (reference, recognised)."""
    edits = total = 0
    for reference, recognised in pairs:
        edits, total = edits + edit_distance(reference, recognised), total + len(reference)
    return edits / total
