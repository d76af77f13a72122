"""A digest of values by content: equal for equal values in any process, different for different ones.

Every value goes in with its type and its length, so that no two sequences of values give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NewType

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.types import Array

Digest = NewType("Digest", bytes)
"""32 bytes of BLAKE2b."""


def content_digest(values: Iterable[object]) -> Digest:
    """The digest of a sequence of values.

    Parameters
    ----------
    values : None, numbers, strings, bytes, arrays of any dtype, NumPy scalars, frozen dataclasses, and sequences and
        mappings of these (of a mapping, the order doesn't count). They are taken in one at a time and not kept.

    Raises
    ------
    UsageError : a value has no content that could be compared.
    """
    hasher = hashlib.blake2b(digest_size=32)
    count = 0
    for value in values:
        _add(hasher, value)
        count += 1
    hasher.update(b"end %d" % count)
    return Digest(hasher.digest())


def _add(hasher: Any, value: object) -> None:
    match value:
        case np.ndarray() | np.generic():
            _add_array(hasher, np.asarray(value))
        case bytes() | bytearray() | memoryview():
            _add_bytes(hasher, "bytes", memoryview(value).cast("B"))
        case str():
            _add_bytes(hasher, "str", value.encode("utf-8", "surrogatepass"))
        case None | bool() | int() | float():
            _add_bytes(hasher, type(value).__name__, repr(value).encode())
        case tuple() | list():
            hasher.update(b"sequence %d;" % len(value))
            for entry in value:
                _add(hasher, entry)
        case Mapping():
            hasher.update(b"mapping %d;" % len(value))
            for entry in sorted(content_digest(item) for item in value.items()):
                hasher.update(entry)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _add(hasher, type(value).__qualname__)
            _add(hasher, [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)])
        case _:
            raise UsageError(
                f"the cache can't tell one {type(value).__name__} from another: expected arrays, numbers and strings; "
                "convert it, or work without a cache"
            )


def _add_array(hasher: Any, array: Array) -> None:
    _add(hasher, ("array", array.dtype.name, array.dtype.str, array.shape))
    if array.dtype.hasobject:
        _add(hasher, array.reshape(-1).tolist())
    elif array.size and array.dtype.itemsize:
        _add_bytes(hasher, "values", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _add_bytes(hasher: Any, kind: str, content: bytes | memoryview) -> None:
    hasher.update(b"%s %d;" % (kind.encode(), len(content)))
    hasher.update(content)
