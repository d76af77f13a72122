"""A directory for what a run needs on disk only while it lasts: on the output's file system, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lowrank_onnx.model_io.workspace import open_workspace, report_os_errors, resolve_target
from lowrank_onnx.types import Array


def save_array(path: Path, values: Array) -> None:
    """Write an array into a scratch directory, to be read with `numpy.load`.

    Raises
    ------
    OutputError : there is no room for it.
    """
    with report_os_errors(path):
        np.save(path, values, allow_pickle=False)


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
