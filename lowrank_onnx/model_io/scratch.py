"""A directory for what a run needs on disk only while it lasts: on the output's file system, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_onnx.model_io.workspace import open_workspace, report_os_errors, resolve_target
from lowrank_onnx.types import Array


@dataclass(frozen=True, slots=True)
class SavedArray:
    """An array in a file of nothing but its values: to read the header of an ``.npy`` file takes as long as 1 MB."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> Array:
        """All values."""
        return np.fromfile(self.path, self.dtype).reshape(self.shape)

    def mapped(self) -> Array:
        """The values, read-only, each read from the file when it is looked at."""
        if 0 in self.shape:
            return self.read()
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)


def save_array(path: Path, values: Array) -> SavedArray:
    """Write an array into a scratch directory.

    Raises
    ------
    OutputError : there is no room for it.
    """
    with report_os_errors(path):
        np.ascontiguousarray(values).tofile(path)
    return SavedArray(path, values.dtype, values.shape)


@contextmanager
def scratch_directory(target: Path | None) -> Iterator[Path]:
    """A private directory beside `target`, or in the system's temporary directory where there is no target.

    Beside the output there is room for the output, and a killed run's leftovers are removed by the next run for the
    same target; the system's temporary directory may lie in memory.

    Raises
    ------
    OutputError : the directory can't be made there.
    """
    if target is None:
        with tempfile.TemporaryDirectory(prefix="lowrank-onnx-") as name:
            yield Path(name)
        return
    anchor = resolve_target(target)
    with report_os_errors(anchor):
        workspace = open_workspace(anchor)
    try:
        yield workspace.path
    finally:
        workspace.remove()
