"""One entry of a cache as a file: plain values and arrays, and what it takes to trust them.

A file is::

    magic line | length of the header, 8 bytes | header, JSON | arrays, C order | digest of all before, 32 bytes

The header repeats kind and key. Nothing in it is believed: shapes must be those that the reader expects, and sizes must
add up to the file's, before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from lowrank_onnx.types import Array

MAGIC = b"lowrank-onnx cache 1\n"
"""Begins every entry; raise the number when the layout of the file changes."""

DTYPES = ("<f4", "<f8")
"""What an entry's arrays may hold."""

LARGEST_HEADER = 16 << 20
"""Bytes."""

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry holds: `meta`, plain JSON values, and named float32 or float64 arrays."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, Array] = field(default_factory=dict)


def write_entry(stream: BinaryIO, kind: str, key: str, entry: Entry) -> None:
    """Write an entry. Raises `ValueError` where it holds what an entry can't, and OSError."""
    arrays = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        for name, array in entry.arrays.items()
    }
    described = [[name, array.dtype.newbyteorder("<").str, list(array.shape)] for name, array in arrays.items()]
    wrong = [dtype for _, dtype, _ in described if dtype not in DTYPES]
    if wrong:
        raise ValueError(f"an entry can't hold {wrong[0]}: expected one of {', '.join(DTYPES)}")
    header = json.dumps({"kind": kind, "key": key, "meta": dict(entry.meta), "arrays": described}).encode("ascii")
    if len(header) > LARGEST_HEADER:
        raise ValueError(f"an entry can't say {len(header)} bytes of itself: expected at most {LARGEST_HEADER}")
    hasher = _new_hasher()
    pieces: list[bytes | memoryview] = [MAGIC, len(header).to_bytes(8, "little"), header]
    pieces += map(_flat_bytes, arrays.values())
    for piece in pieces:
        hasher.update(piece)
        stream.write(piece)
    stream.write(hasher.digest())


def read_entry(stream: BinaryIO, kind: str, key: str, shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    """An entry that is what its name says, with arrays of exactly these shapes.

    Raises
    ------
    ValueError, KeyError, TypeError
        It isn't.
    """
    size = os.fstat(stream.fileno()).st_size
    hasher = _new_hasher()
    beginning = stream.read(len(MAGIC) + 8)
    if not beginning.startswith(MAGIC):
        raise ValueError("it doesn't begin as an entry does")
    length = int.from_bytes(beginning[len(MAGIC) :], "little")
    left = size - len(MAGIC) - 8 - length - _DIGEST_BYTES
    if left < 0 or length > LARGEST_HEADER:
        raise ValueError("it is cut off")
    text = stream.read(length)
    hasher.update(beginning)
    hasher.update(text)
    header = json.loads(text)
    if header["kind"] != kind or header["key"] != key:
        raise ValueError("it is another result's")
    if not isinstance(header["meta"], dict):
        raise ValueError("it says nothing of its contents")
    dtypes = _checked_dtypes(header["arrays"], shapes)
    if left != sum(dtype.itemsize * math.prod(shapes[name]) for name, dtype in dtypes.items()):
        raise ValueError("its size isn't that of its arrays")
    arrays = {name: _read_array(stream, hasher, shapes[name], dtype) for name, dtype in dtypes.items()}
    if stream.read(_DIGEST_BYTES + 1) != hasher.digest():
        raise ValueError("its checksum is wrong")
    return Entry(header["meta"], arrays)


def _checked_dtypes(described: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.dtype[Any]]:
    """The dtype of each array, in the order of the file."""
    found = {name: (dtype, tuple(shape)) for name, dtype, shape in described}
    if len(found) != len(described) or {name: shape for name, (_, shape) in found.items()} != dict(shapes):
        raise ValueError("its arrays aren't those expected")
    if any(dtype not in DTYPES for dtype, _ in found.values()):
        raise ValueError("its arrays aren't of a dtype expected")
    return {name: np.dtype(dtype) for name, (dtype, _) in found.items()}


def _read_array(stream: BinaryIO, hasher: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    array: Array = np.empty(shape, dtype)
    buffer = _flat_bytes(array)
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it became shorter while it was read")
        filled += count
    hasher.update(buffer)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _flat_bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _new_hasher() -> Any:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)
