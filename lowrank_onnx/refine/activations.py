"""Values of the two models that wait for what reads them: in memory, then on disk, both up to a bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from lowrank_onnx.types import Array

Side: TypeAlias = Literal["original", "compressed", "rows"]
"""Which of the two models a value is of; or rows of the original's, which wait for the compressed model's."""


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A value in a file, as the bytes that it is: NumPy can't store the dtypes of ml_dtypes."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int

    def read(self) -> Array:
        return np.fromfile(self.path, np.uint8).view(self.dtype).reshape(self.shape)


class Activations:
    """Values by feed, side and name.

    Parameters
    ----------
    directory : for what doesn't fit into memory; the caller owns and removes it.
    max_memory, max_disk : bytes.
    """

    def __init__(self, directory: Path, *, max_memory: int, max_disk: int) -> None:
        self._directory = directory
        self._memory, self._disk = max_memory, max_disk
        self._values: dict[int, dict[tuple[Side, str], Array | _Spilled]] = {}
        self._numbers = itertools.count()

    def put(self, feed: int, side: Side, name: str, value: Array) -> bool:
        """Keep a value; False, and it is not kept, where there is no room for it."""
        kept: Array | _Spilled
        if value.nbytes <= self._memory:
            self._memory -= value.nbytes
            kept = value
        elif value.nbytes <= self._disk and value.dtype.kind != "O":
            self._disk -= value.nbytes
            path = self._directory / f"activation.{next(self._numbers)}.bin"
            np.ascontiguousarray(value).reshape(-1).view(np.uint8).tofile(path)
            kept = _Spilled(path, value.dtype, value.shape, value.nbytes)
        else:
            return False
        self._values.setdefault(feed, {})[side, name] = kept
        return True

    def get(self, feed: int, side: Side, name: str) -> Array:
        """A value that was kept (`KeyError` for any other)."""
        kept = self._values[feed][side, name]
        return kept.read() if isinstance(kept, _Spilled) else kept

    def drop(self, feed: int, side: Side | None = None, wanted: Iterable[str] = ()) -> None:
        """Give up the values of a feed, of one side or of all, but for those named."""
        names = set(wanted)
        values = self._values.get(feed, {})
        for key in [key for key in values if side in (None, key[0]) and key[1] not in names]:
            self._release(values.pop(key))

    def give_up(self, feed: int, side: Side, names: Iterable[str]) -> None:
        """Give up some values of a feed, where they are there."""
        values = self._values.get(feed, {})
        for name in names:
            if (side, name) in values:
                self._release(values.pop((side, name)))

    def _release(self, kept: Array | _Spilled) -> None:
        if isinstance(kept, _Spilled):
            self._disk += kept.nbytes
            kept.path.unlink()
        else:
            self._memory += kept.nbytes
