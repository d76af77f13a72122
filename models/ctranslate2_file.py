"""Read the tensors of a CTranslate2 model: a header, then each variable with its name, shape, type and bytes."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 6
"""Of the file format, little-endian throughout."""

_DTYPES = ("<f4", "|i1", "<i2", "<i4", "<f2")
"""By the number that stands for it."""


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, size: int) -> bytes:
        part = self.content[self.place : self.place + size]
        if len(part) != size:
            raise ValueError(f"the file ends at byte {len(self.content)}, in the middle of {size} bytes to read")
        self.place += size
        return part

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))
        return int(value)

    def text(self) -> str:
        """A string that ends with a zero byte, which its length counts."""
        return self.take(self.number("H")).rstrip(b"\0").decode()


def read_ctranslate2(content: bytes) -> dict[str, NDArray[Any]]:
    """The variables by name; another name for the same variable is left out.

    Raises
    ------
    ValueError
        If it is a file of another version, or a variable doesn't fit in it.
    """
    reader = _Reader(content)
    version = reader.number("I")
    if version != VERSION:
        raise ValueError(f"a file of version {version}: expected version {VERSION}")
    reader.text()  # which kind of model it is
    reader.number("I")  # and its revision
    return dict(_read_variable(reader) for _ in range(reader.number("I")))


def _read_variable(reader: _Reader) -> tuple[str, NDArray[Any]]:
    name = reader.text()
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    kind, size = reader.number("B"), reader.number("I")
    dtype = np.dtype(_DTYPES[kind]) if kind < len(_DTYPES) else None
    if dtype is None or size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"variable {name!r} of type {kind} and shape {shape} can't have {size} bytes")
    return name, np.frombuffer(reader.take(size), dtype).reshape(shape)
