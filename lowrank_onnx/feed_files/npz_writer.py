"""An ``.npz`` written row by row: no more than one row is in memory, and the same rows give the same bytes."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_onnx.errors import OutputError
from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.written import whole_file
from lowrank_onnx.types import Array

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the earliest that a zip can hold."""


@dataclass(frozen=True, slots=True)
class FeedArray:
    """One array of the file: `rows` gives ``shape[0]`` arrays of ``shape[1:]``, once."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Iterable[Array]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, in Python's own integers: no size overflows."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_feeds(path: Path, arrays: Sequence[FeedArray]) -> None:
    """Write the arrays; the file appears whole or not at all.

    Raises
    ------
    OutputError
        There is not enough space, or the file can't be written.
    ValueError
        The rows aren't those that were promised.
    """
    target = Path(os.path.realpath(path))
    needed = sum(array.nbytes for array in arrays)
    try:
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise OutputError(
                f"--output {printable(str(path))}: needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: "
                "take fewer --samples"
            )
        with whole_file(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for array in arrays:
                _write_array(archive, array)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"--output {printable(str(path))}: can't be written ({reason}): give another path") from error


def _write_array(archive: zipfile.ZipFile, array: FeedArray) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    count = 0
    with archive.open(zipfile.ZipInfo(f"{array.name}.npy", _EPOCH), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for row in array.rows:
            if row.shape != array.shape[1:] or row.dtype != array.dtype:
                raise ValueError(
                    f"{array.name}: row {count} is {row.dtype} {row.shape}, promised was {array.shape[1:]}"
                )
            member.write(np.ascontiguousarray(row).data)
            count += 1
    if count != array.shape[0]:
        raise ValueError(f"{array.name}: {count} rows, promised were {array.shape[0]}")


def evenly_spread(count: int, samples: int) -> list[int]:
    """`samples` of `count` numbers from 0 on, in order and evenly spread; all where there are no more."""
    if samples >= count:
        return list(range(count))
    return [index * count // samples for index in range(samples)]
