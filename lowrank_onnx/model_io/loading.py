"""Opens a model without copying its weights."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx
from google.protobuf.message import DecodeError, EncodeError

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.external import RESERVED_PREFIX, ExternalFiles, find_entry, is_external
from lowrank_onnx.model_io.foreign import export_object
from lowrank_onnx.model_io.model import Model
from lowrank_onnx.model_io.sources import FileRange, MemoryRange, SourceFile, describe_file, find_file
from lowrank_onnx.model_io.store import Stripped, WeightStore, make_placeholder
from lowrank_onnx.model_io.tensors import find_tensors
from lowrank_onnx.model_io.wire import (
    Buffer,
    Field,
    Piece,
    WireError,
    decode_varint,
    join_pieces,
    rewrite_tensors,
    scan_fields,
)

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    import onnx_ir as ir

STRIP_BYTES = 1024
"""Raw data of at least this many bytes stays out of the skeleton."""

_FIELDS = onnx.TensorProto.DESCRIPTOR.fields_by_name
_RAW_DATA = _FIELDS["raw_data"].number
_EXTERNAL_DATA = _FIELDS["external_data"].number
_DATA_LOCATION = _FIELDS["data_location"].number

_FOREIGN_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"{", "JSON text: load it with onnx.load(path, format='json') and save it as .onnx"),
    (b"<", "a web page or XML: download the model itself"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint: unpack it, or export it to ONNX"),
    (b"\x89HDF", "an HDF5 file: export it to ONNX"),
    (b"ir_version", "protobuf text: load it with onnx.load(path, format='textproto') and save it as .onnx"),
)

Locate: TypeAlias = Callable[[int, int], FileRange | MemoryRange]
"""From an offset and a length in the serialized model to the source that reads it later."""


ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | gs.Graph | ir.Model"
"""What a model can be read from."""


def load_model(source: ModelSource, *, base_dir: Path | None = None) -> Model:
    """Open a model; its weights are left where they are.

    Parameters
    ----------
    source : the path of an ONNX file of any size, a ModelProto, an onnx-graphsurgeon Graph or an onnx-ir Model. A Graph
        goes through graphsurgeon's own export, with what that loses. Changes to the object afterwards aren't seen.
    base_dir : the directory of external data; unless given, for a path the file's own, for an onnx-ir Model the one
        that its tensors name.

    Raises
    ------
    ModelError : there is no such file, it is no ONNX model, or a reference to external data is unsafe or wrong; every
        reference is checked before anything is read.
    """
    if isinstance(source, onnx.ModelProto):
        return _load_bytes(_serialize(source), base_dir)
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(os.path.abspath(os.fspath(source))), base_dir)
    exported, named_dir = export_object(source)
    return _load_bytes(_serialize(exported), named_dir if base_dir is None else base_dir)


def _load_file(path: Path, base_dir: Path | None) -> Model:
    file, buffer = _map_file(path)
    with buffer:
        skeleton, stripped = _strip(buffer, str(path), lambda offset, length: FileRange(file, offset, length))
    base = path.parent if base_dir is None else base_dir
    roots = (Path(os.path.realpath(base)), Path(os.path.realpath(path)).parent)
    store = WeightStore(ExternalFiles(base, roots), stripped, {})
    return _make_model(skeleton, store, path.name, path, file.size)


def _load_bytes(serialized: bytes, base_dir: Path | None) -> Model:
    skeleton, stripped = _strip(serialized, "the model", lambda offset, length: MemoryRange(serialized, offset, length))
    base = None if base_dir is None else Path(os.path.abspath(base_dir))
    roots = () if base is None else (Path(os.path.realpath(base)),)
    name = skeleton.graph.name
    store = WeightStore(ExternalFiles(base, roots), stripped, {})
    return _make_model(skeleton, store, name if isinstance(name, str) and name else "model", None, len(serialized))


def find_locations(path: Path) -> frozenset[str]:
    """The locations of external data that a model file names, unchecked. Raises `ModelError` where it can't be read."""
    file, buffer = _map_file(path)
    with buffer:
        skeleton, stripped = _strip(buffer, str(path), lambda offset, length: FileRange(file, offset, length))
    named = (find_entry(found.tensor, "location") for found in find_tensors(skeleton) if is_external(found.tensor))
    return frozenset(location for location in named if isinstance(location, str)) - stripped.keys()


def _make_model(skeleton: onnx.ModelProto, store: WeightStore, name: str, path: Path | None, own_bytes: int) -> Model:
    external = False
    for found in find_tensors(skeleton):
        store.find_source(found.tensor)  # refuses an unsafe or impossible reference
        external = external or (is_external(found.tensor) and store.find_stripped(found.tensor) is None)
    external_bytes = sum(file.size for file in store.files.files())
    return Model(skeleton, store, name, path, external, own_bytes + external_bytes)


def _map_file(path: Path) -> tuple[SourceFile, mmap.mmap]:
    """The file, mapped; nothing of it is in memory until it is looked at."""
    try:
        find_file(path)
        with open(path, "rb") as opened:
            file = describe_file(path, os.fstat(opened.fileno()))
            if file.size:
                return file, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = "no such file" if missing else (getattr(error, "strerror", None) or "is no usable path")
        raise ModelError(f"{path}: {reason}: expected the path of an ONNX model file; check the path") from error
    raise ModelError(f"{path}: is empty: expected an ONNX model; export it again")


def _serialize(model: onnx.ModelProto) -> bytes:
    try:
        serialized: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError, RecursionError) as error:
        raise ModelError(
            "the ModelProto can't be serialized, which is limited to 2 GB: expected a smaller one;"
            " save it with external data and give its path"
        ) from error
    return serialized


def _strip(buffer: Buffer, name: str, locate: Locate) -> tuple[onnx.ModelProto, dict[str, Stripped]]:
    """The parsed model without its large raw data, and where that data is."""
    token = secrets.token_hex(16)
    stripped: dict[str, Stripped] = {}

    def edit(start: int, end: int) -> list[Piece] | None:
        fields = list(scan_fields(buffer, start, end))
        raw = _find_strippable(buffer, fields)
        if raw is None:
            return None
        location = f"{RESERVED_PREFIX}{token}:{len(stripped)}"
        explicit = any(field.number == _DATA_LOCATION for field in fields)
        stripped[location] = Stripped(locate(raw.payload, raw.end - raw.payload), explicit)
        kept: list[Piece] = [
            buffer[field.start : field.end] for field in fields if field.number not in (_RAW_DATA, _DATA_LOCATION)
        ]
        return [*kept, make_placeholder(location, onnx.TensorProto()).SerializeToString()]

    skeleton = onnx.ModelProto()
    try:
        pieces = rewrite_tensors(buffer, lambda start, end: end - start >= STRIP_BYTES, edit)
        skeleton.ParseFromString(join_pieces(pieces))
    except (WireError, DecodeError, RecursionError) as error:
        raise ModelError(f"{name}: {_explain(buffer, error)}") from error
    if not skeleton.HasField("graph"):
        raise ModelError(f"{name}: holds no graph: expected a whole ONNX model; the file is cut off or another kind")
    return skeleton, stripped


def _find_strippable(buffer: Buffer, fields: list[Field]) -> Field | None:
    """The raw data of a tensor if it is large, the only one, and stored in the plain way; else None."""
    raw = [field for field in fields if field.number == _RAW_DATA]
    if len(raw) != 1 or raw[0].wire_type != 2 or raw[0].end - raw[0].payload < STRIP_BYTES:
        return None
    if any(field.number == _EXTERNAL_DATA for field in fields):
        return None
    for field in fields:
        if field.number == _DATA_LOCATION and (
            field.wire_type != 0 or decode_varint(buffer, field.payload, field.end)[0] != onnx.TensorProto.DEFAULT
        ):
            return None
    return raw[0]


def _explain(buffer: Buffer, error: Exception) -> str:
    """Why the bytes are no model, in terms of what a user may have given by mistake."""
    head = bytes(buffer[:64]).lstrip()
    for magic, explanation in _FOREIGN_FORMATS:
        if head.startswith(magic):
            return f"expected a binary ONNX model, but this is {explanation}"
    if "MaxDepth" in str(error) or isinstance(error, RecursionError):
        return "its messages are nested too deeply for protobuf: expected at most some 30 subgraphs in one another"
    detail = f" ({error})" if isinstance(error, WireError) else ""
    return f"no ONNX model, or cut off{detail}: expected a binary ONNX model; download or export it again"
