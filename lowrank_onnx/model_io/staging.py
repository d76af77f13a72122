"""Writes a model so that at every moment the target is the old model whole, the new one whole, or absent.

All files are written in a private directory beside the target. The commit syncs them, and renames first the data file,
whose name holds a hash of its contents and so doesn't touch the old model's, then the model. A process that is killed
in between leaves the old pair intact, and its directory says what the next run for that target has to clean up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

import onnx

from lowrank_onnx.errors import ModelError, OutputError
from lowrank_onnx.model_io.assembly import PROTO_LIMIT, DataRange, Placement, emit_model
from lowrank_onnx.model_io.datafile import (
    count_data_bytes,
    find_own_data,
    name_data,
    plan_data,
    remove_obsolete,
    write_data,
)
from lowrank_onnx.model_io.model import Model
from lowrank_onnx.model_io.sources import Source, SourceFile
from lowrank_onnx.model_io.wire import Piece, count_bytes, piece_chunks
from lowrank_onnx.model_io.workspace import (
    JOURNAL,
    Workspace,
    find_leftovers,
    open_workspace,
    report_os_errors,
    resolve_target,
    sync_directory,
    sync_file,
)

INLINE_LIMIT = 1_900_000_000
"""Bytes up to which a model is written as a single file: clear of protobuf's 2 GB, which readers add to."""


class StagedModel:
    """A model that is written, but not yet at its target; what is never committed is never synced.

    As a context manager it discards on leaving what wasn't committed.

    Attributes
    ----------
    path : the model file, which runs in onnxruntime as it lies; after `commit`, the target.
    file_bytes : bytes of the model file and its data file.
    """

    def __init__(
        self, workspace: Workspace, target: Path, data: str | None, *, force: bool, needed: Collection[SourceFile]
    ) -> None:
        self.path = workspace.path / target.name
        self.file_bytes = sum(
            (workspace.path / name).stat().st_size for name in (target.name, data) if name is not None
        )
        self._workspace = workspace
        self._target = target
        self._data = data
        self._force = force
        self._needed = needed
        self._open = True

    def __enter__(self) -> StagedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove everything that was staged; does nothing after a commit or another discard."""
        if self._open:
            self._open = False
            self._workspace.remove()

    def commit(self) -> Path:
        """Move the model, and its data before it, to the target; returns the target.

        Raises
        ------
        OutputError : the target can't be written, or has appeared in the meantime and `force` wasn't given. What was
            there before is as it was, and the staged files are gone.
        """
        if not self._open:
            raise OutputError(f"{self._target}: expected a staged model, but it was committed or discarded before")
        try:
            with report_os_errors(self._target):
                self._move()
        finally:
            self.discard()
        self.path = self._target
        return self._target

    def _move(self) -> None:
        folder = self._target.parent
        obsolete = set(find_own_data(self._target)) if self._target.is_file() else set()
        if self._data is not None:
            obsolete.add(self._data)
        for name in (self._data, self._target.name):
            if name is not None:
                sync_file(self._workspace.path / name)
        journal = self._workspace.path / JOURNAL
        _write_file(journal, ["\n".join(sorted(obsolete)).encode("utf-8", "surrogateescape")])
        sync_file(journal)
        sync_directory(self._workspace.path)
        unmoved = self._data if self._data is not None and not (folder / self._data).exists() else None
        try:
            if self._data is not None:
                os.replace(self._workspace.path / self._data, folder / self._data)
                sync_directory(folder)
            _rename(self.path, self._target, force=self._force)
            sync_directory(folder)
        except BaseException:
            if unmoved is not None and self.path.exists():
                (folder / unmoved).unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # the model is in place; what is left over does no harm
            remove_obsolete(self._target, obsolete, self._needed)


def check_target(model: Model, path: Path, *, force: bool = False) -> Path:
    """Refuse a target that can't be the output, before work is spent on it; returns it as an absolute path.

    Raises
    ------
    OutputError : it exists and `force` isn't given, it is a directory, it is the input or its data (even with
        `force`), or its directory doesn't exist.
    """
    target = resolve_target(path)
    with report_os_errors(target):
        if not target.parent.is_dir():
            raise OutputError(f"{target}: {target.parent} is no directory: expected one to write into; create it first")
        if target.is_dir():
            raise OutputError(f"{target}: is a directory: expected the path of a file, e.g. {target / 'small.onnx'}")
        inputs = [file.path for file in model.store.files.files()] + ([model.path] if model.path else [])
        if target.exists() and any(file.exists() and target.samefile(file) for file in inputs):
            raise OutputError(f"{target}: is the input, which is never changed: expected another path; give another -o")
        if os.path.lexists(target) and not force:
            raise OutputError(f"{target}: exists: expected a new path; give another -o, or --force to replace it")
    return target


def stage_model(model: Model, path: Path, *, force: bool = False) -> StagedModel:
    """Write a model, complete, beside its target.

    A model without external data that fits into 1.9 GB becomes a single file. Any other becomes a model file and one
    data file, to which the references to external data are changed; nothing else of what wasn't rewritten changes.
    Weights are copied chunk by chunk, and new tensors made one at a time.

    Parameters
    ----------
    model : the model; its source files must still be as they were when it was loaded.
    path : where `StagedModel.commit` will put it.
    force : whether it may replace a file there.

    Raises
    ------
    OutputError : see `check_target`; or the directory isn't writable, or has too little room. Nothing is left behind.
    ModelError : a weight can't be read, or the model exceeds 2 GB even without its initializers.
    """
    target = check_target(model, path, force=force)
    with report_os_errors(target):
        _clean_leftovers(target)
        workspace = open_workspace(target)
    try:
        with report_os_errors(target):
            data = _write_model(model, target, workspace)
            return StagedModel(workspace, target, data, force=force, needed=model.store.files.files())
    except BaseException:
        workspace.remove()
        raise


def _write_model(model: Model, target: Path, workspace: Workspace) -> str | None:
    """Write the files; returns the name of the data file if there is one."""
    offsets = plan_data(model, spill=False) if model.external else {}
    pieces = _emit(model, offsets, "")
    if count_bytes(pieces) > INLINE_LIMIT:
        offsets = plan_data(model, spill=True)
        pieces = _emit(model, offsets, "")
    size = count_bytes(pieces)
    if size > PROTO_LIMIT:
        raise ModelError(
            f"model {model.name!r} has {size} bytes that aren't initializers: expected at most {PROTO_LIMIT}; turn its"
            " large Constant nodes into initializers"
        )
    _check_room(target, size + count_data_bytes(offsets))
    name = None
    if offsets:
        staged = workspace.path / "data"
        with open(staged, "wb") as file:
            name = name_data(target, write_data(file, offsets))
        os.replace(staged, workspace.path / name)
        pieces = _emit(model, offsets, name)
    _write_file(workspace.path / target.name, pieces)
    return name


def _emit(model: Model, offsets: dict[Source, int], location: str) -> list[Piece]:
    """The model file, given what lies in the data file."""

    def place(_tensor: onnx.TensorProto, source: Source) -> Placement:
        return DataRange(location, offsets[source], len(source)) if source in offsets else "inline"

    return emit_model(model, place)


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed} bytes and {target.parent} has {free} left: expected more room; free some, or"
            " give another -o"
        )


def _write_file(path: Path, pieces: list[Piece]) -> None:
    with open(path, "wb") as file:
        for piece in pieces:
            for chunk in piece_chunks(piece):
                file.write(chunk)


def _rename(source: Path, target: Path, *, force: bool) -> None:
    """Rename, without a moment in which another process's new file could be replaced unless `force`."""
    if not force:
        try:
            os.link(source, target)  # fails where the target exists, which a rename doesn't
        except FileExistsError as error:
            raise OutputError(f"{target}: has appeared meanwhile: expected a new path; give --force") from error
        except OSError as error:  # a file system without links
            if os.path.lexists(target):
                raise OutputError(f"{target}: has appeared meanwhile: expected a new path; give --force") from error
        else:
            os.unlink(source)
            return
    os.replace(source, target)


def _clean_leftovers(target: Path) -> None:
    """Remove what killed runs for this target left: their directories, and data that no model took."""
    for leftover in find_leftovers(target):
        journal = leftover.path / JOURNAL
        names = journal.read_text("utf-8", "surrogateescape").splitlines() if journal.is_file() else []
        with contextlib.suppress(OSError):
            remove_obsolete(target, names, ())
        leftover.remove()
