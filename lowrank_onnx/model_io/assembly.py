"""Puts the bytes back into a skeleton: as a stream of pieces, as bytes, or as one proto in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.external import is_external
from lowrank_onnx.model_io.model import Model
from lowrank_onnx.model_io.sources import FileRange, Provided, Source
from lowrank_onnx.model_io.tensors import find_tensors, readable_name
from lowrank_onnx.model_io.wire import (
    Piece,
    count_bytes,
    encode_varint,
    join_pieces,
    piece_chunks,
    rewrite_tensors,
    scan_fields,
)

PROTO_LIMIT = 2**31 - 1
"""Bytes that a serialized protobuf message can have."""

_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


@dataclass(frozen=True, slots=True)
class DataRange:
    """A range of an external data file, as a tensor names it."""

    location: str
    offset: int
    length: int


Placement: TypeAlias = Literal["inline"] | DataRange | None
"""What becomes of a tensor whose bytes aren't in the skeleton: inline, in a data file, or (None) as it is."""


def restore_fields(model: Model, tensor: onnx.TensorProto) -> None:
    """Undo, in place, what makes `tensor` refer to bytes elsewhere; the bytes themselves are still to be put in."""
    stripped = model.store.find_stripped(tensor)
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    if stripped is not None and stripped.default_location:
        tensor.data_location = onnx.TensorProto.DEFAULT
    else:
        tensor.ClearField("data_location")


def emit_model(model: Model, place: Callable[[onnx.TensorProto, Source], Placement]) -> list[Piece]:
    """The serialized model as pieces; weights are read only as the pieces are.

    Parameters
    ----------
    model : whose store gives the bytes.
    place : what becomes of a tensor whose bytes aren't in the skeleton.

    Returns
    -------
    Pieces that, joined, equal the deterministic serialization of the completed proto.
    """
    serialized = model.skeleton.SerializeToString(deterministic=True)

    def edit(start: int, end: int) -> list[Piece] | None:
        tensor = onnx.TensorProto()
        tensor.ParseFromString(serialized[start:end])
        source = model.store.find_source(tensor)
        placement = None if source is None else place(tensor, source)
        if source is None or placement is None:
            return None
        if isinstance(placement, DataRange):
            _refer(tensor, placement)
            return [tensor.SerializeToString(deterministic=True)]
        restore_fields(model, tensor)
        head, tail = _split_at_raw_data(tensor.SerializeToString(deterministic=True))
        tag = encode_varint(_RAW_DATA << 3 | 2)
        return [head + tag + encode_varint(len(source)), source, tail]

    # Every tensor whose bytes are elsewhere has the key "location"; a search tells where not to look.
    return rewrite_tensors(serialized, lambda start, end: serialized.find(b"location", start, end) >= 0, edit)


def _refer(tensor: onnx.TensorProto, data: DataRange) -> None:
    """Make `tensor` refer to a data file, in place; nothing else of it changes."""
    del tensor.external_data[:]
    for key, value in (("location", data.location), ("offset", str(data.offset)), ("length", str(data.length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = onnx.TensorProto.EXTERNAL


def _split_at_raw_data(serialized: bytes) -> tuple[bytes, bytes]:
    """A serialized tensor in two parts, between which protobuf would write its raw data (fields go by number)."""
    for field in scan_fields(serialized, 0, len(serialized)):
        if field.number > _RAW_DATA:
            return serialized[: field.start], serialized[field.start :]
    return serialized, b""


def model_chunks(model: Model) -> Iterator[bytes | memoryview]:
    """The whole serialized model, all weights inline, in chunks; the same however and wherever the model is stored."""
    for piece in emit_model(model, lambda tensor, source: "inline"):
        yield from piece_chunks(piece)


def model_bytes(model: Model) -> bytes:
    """The whole serialized model: inline and new tensors in it, references to external data as they are.

    With `base_dir` it runs in onnxruntime without touching the disk. onnxruntime follows no link out of that
    directory; so where the model has such links, the references name the files that they lead to instead.

    Raises
    ------
    ModelError : it would exceed 2 GB.
    """
    reading_dir = model.store.files.reading_dir()

    def place(tensor: onnx.TensorProto, source: Source) -> Placement:
        if not isinstance(source, FileRange) or not was_external(model, tensor, source):
            return "inline"
        if reading_dir is None or reading_dir == model.store.files.base_dir:
            return None
        return DataRange(source.file.path.relative_to(reading_dir).as_posix(), source.offset, source.length)

    pieces = emit_model(model, place)
    _check_size(model, count_bytes(pieces))
    return join_pieces(pieces)


def was_external(model: Model, tensor: onnx.TensorProto, source: Source) -> bool:
    """Whether the tensor had external data in the file that the model came from."""
    return not isinstance(source, Provided) and model.store.find_stripped(tensor) is None


def complete_proto(model: Model) -> onnx.ModelProto:
    """The whole model in memory, external and new tensors inline too. Raises `ModelError` above 2 GB."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model.skeleton)
    missing = [
        (found.tensor, source)
        for found in find_tensors(whole)
        if is_external(found.tensor) and (source := model.store.find_source(found.tensor)) is not None
    ]
    _check_size(model, whole.ByteSize() + sum(len(source) for _, source in missing))
    for tensor, source in missing:
        restore_fields(model, tensor)
        tensor.raw_data = join_pieces([source])
    return whole


def _check_size(model: Model, size: int) -> None:
    if size > PROTO_LIMIT:
        raise ModelError(
            f"model {readable_name(model.name)} has {size} bytes: expected at most {PROTO_LIMIT}, which is what a"
            " single protobuf message can hold; keep it in a file with external data"
        )
