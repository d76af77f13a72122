"""Where the bytes of a tensor come from: a range of a file, a range of memory, or a function that makes them.

All three tell their length beforehand, give their bytes in chunks (for writing) and as one array (for computing),
and hold nothing in memory in between.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lowrank_onnx.errors import ModelError
from lowrank_onnx.types import Array

CHUNK_BYTES = 8 << 20
"""Bytes that are copied at a time."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as it was when the model was loaded; it is opened for each read and must not have changed."""

    path: Path
    size: int
    device: int
    inode: int
    modified_ns: int

    def open(self) -> int:
        """A file descriptor for reading. Raises `ModelError` where the file is gone or has changed since."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ModelError(f"{self.path}: can't be read any more ({error.strerror}); keep it in place") from error
        if describe_file(self.path, os.fstat(descriptor)) != self:
            os.close(descriptor)
            raise ModelError(f"{self.path}: changed since it was loaded; load the model again when nobody writes to it")
        return descriptor


def describe_file(path: Path, status: os.stat_result) -> SourceFile:
    """What tells a file from another one, or from itself after a change."""
    return SourceFile(path, status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns)


def find_file(path: Path) -> SourceFile:
    """The file at `path`, if it is a regular one: a device or a pipe could block or never end. Raises OSError."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return describe_file(path, status)


@dataclass(frozen=True, slots=True)
class FileRange:
    """`length` bytes of a file, from `offset`."""

    file: SourceFile
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def array(self) -> Array:
        """The bytes as a flat read-only uint8 array: a fresh memory map, unmapped when the last view of it is gone."""
        if not self.length:
            return np.empty(0, np.uint8)
        skipped = self.offset % mmap.ALLOCATIONGRANULARITY
        descriptor = self.file.open()
        try:
            mapped = mmap.mmap(descriptor, self.length + skipped, access=mmap.ACCESS_READ, offset=self.offset - skipped)
        finally:
            os.close(descriptor)
        return np.frombuffer(mapped, np.uint8, self.length, skipped)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, read and not mapped, so that they never count as resident."""
        with open(self.file.open(), "rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.length
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise ModelError(f"{self.file.path}: became shorter while it was read; load the model again")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """`length` bytes of a buffer, from `offset`."""

    buffer: bytes = field(compare=False, repr=False)
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def array(self) -> Array:
        """The bytes as a flat read-only uint8 array, without a copy."""
        return np.frombuffer(self.buffer, np.uint8, self.length, self.offset)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, without a copy."""
        yield memoryview(self.buffer)[self.offset : self.offset + self.length]


@dataclass(frozen=True, slots=True)
class Provided:
    """A new tensor, made each time it is asked for; `provide` must return equal arrays every time."""

    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    provide: Callable[[], Array] = field(compare=False, repr=False)

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def array(self) -> Array:
        """The bytes as a flat read-only uint8 array. Raises `ModelError` where the wrong kind of array was provided."""
        values = np.asarray(self.provide())
        if values.dtype != self.dtype or values.shape != self.shape:
            raise ModelError(
                f"new tensor {self.key!r} was provided as {values.dtype} {values.shape}: expected {self.dtype}"
                f" {self.shape}, as its placeholder says"
            )
        # reshape(-1) copies only what isn't contiguous; bfloat16 and its like have no buffer protocol, bytes have.
        flat = values.reshape(-1).view(np.uint8)
        flat.flags.writeable = False
        return flat

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, made once for all chunks."""
        flat = self.array().data
        for start in range(0, len(flat), CHUNK_BYTES):
            yield flat[start : start + CHUNK_BYTES]


Source: TypeAlias = FileRange | MemoryRange | Provided
"""Equal sources have equal bytes, so that they can be stored once."""
