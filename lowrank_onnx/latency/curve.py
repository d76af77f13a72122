"""Latency of a site by rank, between the ranks that were measured; and the file that keeps it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowrank_onnx.errors import OutputError

_LARGEST_ENTRY = 65_536


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """How long one run of a site takes, dense and at some ranks.

    Attributes
    ----------
    dense_ms : milliseconds of one run, dense.
    ranks : the measured ranks, ascending, at least one.
    rank_ms : milliseconds at each of them.
    noise : relative half width of what can't be told apart; differences within it mean nothing.

    Raises
    ------
    ValueError : ranks aren't ascending positive numbers with one time each, a time isn't a positive finite number, or
        the noise isn't a finite number of at least 0.
    """

    dense_ms: float
    ranks: tuple[int, ...]
    rank_ms: tuple[float, ...]
    noise: float

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in zip((0, *self.ranks), self.ranks, strict=False))
        if not self.ranks or not ascending or len(self.ranks) != len(self.rank_ms):
            raise ValueError(f"ranks {self.ranks}, times {self.rank_ms}: expected ascending ranks with a time each")
        if not all(0.0 < time < math.inf for time in (self.dense_ms, *self.rank_ms)):
            raise ValueError(f"times {self.dense_ms}, {self.rank_ms}: expected positive finite numbers")
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"noise {self.noise}: expected a finite number of at least 0")

    def at(self, rank: int) -> float:
        """Milliseconds of one run at any rank of at least 1.

        Linear between measured ranks. Where a larger rank was measured as faster by no more than the noise, both get
        their mean; by more than the noise, it is taken as real (kernels like some sizes better). Below the smallest
        measured rank, the time there: no less than was ever seen. Above the largest, the last piece goes on, but never
        falls; a single measured rank goes on in proportion.

        Raises
        ------
        ValueError : the rank is below 1.
        """
        if rank < 1:
            raise ValueError(f"rank {rank}: expected at least 1")
        times = _smoothed(self.rank_ms, self.noise)
        if rank <= self.ranks[0]:
            return times[0]
        if len(self.ranks) == 1:
            return times[0] * rank / self.ranks[0]
        right = min(bisect_right(self.ranks, rank), len(self.ranks) - 1)
        slope = (times[right] - times[right - 1]) / (self.ranks[right] - self.ranks[right - 1])
        if rank > self.ranks[-1]:
            return times[-1] + max(0.0, slope) * (rank - self.ranks[-1])
        return times[right - 1] + slope * (rank - self.ranks[right - 1])

    def faster(self, rank: int) -> bool:
        """True where the site is faster at this rank than dense by more than the noise."""
        return self.at(rank) < self.dense_ms * (1.0 - self.noise)


@lru_cache
def _smoothed(rank_ms: tuple[float, ...], noise: float) -> tuple[float, ...]:
    """The times, neighbours pooled where they fall by no more than the noise (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for time in rank_ms:
        block = (time, 1)
        while blocks and block[0] < blocks[-1][0] <= block[0] * (1.0 + noise):
            mean, count = blocks.pop()
            block = ((mean * count + block[0] * block[1]) / (count + block[1]), count + block[1])
        blocks.append(block)
    return tuple(mean for mean, count in blocks for _ in range(count))


def write_curve(path: Path, key: str, curve: LatencyCurve, *, note: str) -> None:
    """Write an entry under a temporary name and rename it; `note` is for a person who looks into the file.

    Raises
    ------
    OutputError : it can't be written.
    """
    entry = {
        "key": key,
        "note": note,
        "dense_ms": curve.dense_ms,
        "ranks": curve.ranks,
        "rank_ms": curve.rank_ms,
        "noise": curve.noise,
    }
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(entry, stream, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"cache {path.parent}: {error.strerror}; give a directory that can be written") from error


def read_curve(path: Path, key: str) -> LatencyCurve | None:
    """Read an entry; None where there is none, where it is damaged, or where it is another key's."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_ENTRY + 1)
        if len(text) > _LARGEST_ENTRY:
            return None
        entry = json.loads(text)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        return LatencyCurve(
            dense_ms=_number(entry["dense_ms"]),
            ranks=tuple(_rank(rank) for rank in _list(entry["ranks"])),
            rank_ms=tuple(_number(time) for time in _list(entry["rank_ms"])),
            noise=_number(entry["noise"]),
        )
    except (OSError, ValueError, KeyError, RecursionError):
        return None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} isn't a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a number beyond all bounds") from error


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} isn't a whole number")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} isn't a list")
    return value
