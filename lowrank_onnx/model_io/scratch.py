"""A directory for what a run needs on disk only while it lasts: on the output's file system, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank_onnx.model_io.workspace import open_workspace, report_os_errors, resolve_target


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
