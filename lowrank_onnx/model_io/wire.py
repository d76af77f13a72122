"""Rewrites the tensors of a serialized model without parsing the model.

Protobuf's own parser copies every byte of a file into memory before the first weight can be looked at. What is here
reads only the headers: it walks the wire format (a message is a run of fields, each a tag, then a value; see
https://protobuf.dev/programming-guides/encoding/), descends only where a TensorProto can be, hands each tensor to a
callback, and copies all other bytes as they are, unknown fields included.

Which fields lead to a tensor is taken from the descriptors of the installed onnx, not from a table kept here.
"""

from __future__ import annotations

import io
import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

Buffer: TypeAlias = bytes | mmap.mmap
"""Bytes that can be indexed, sliced (a copy) and searched."""

MAX_DEPTH = 100
"""Protobuf's parsers refuse messages nested more deeply; so nothing below needs to be looked at."""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)


class WireError(ValueError):
    """The bytes are no well-formed protobuf message. The message says where and why."""


class Chunked(Protocol):
    """Bytes that are produced in chunks, their number known beforehand."""

    def __len__(self) -> int:
        """Number of bytes in all."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes in order."""


Piece: TypeAlias = bytes | Chunked

Edit: TypeAlias = Callable[[int, int], "list[Piece] | None"]
"""From the span (start, end) of a TensorProto to the pieces that replace it; None keeps it."""


class Field(NamedTuple):
    """One field of a message: it spans [start, end), its value (or its bytes, if length-delimited) [payload, end)."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message type: its fields that lead to tensors, and those of them whose repetition would mix two tensors."""

    children: dict[int, Descriptor]
    merging: frozenset[int]


def _is_repeated(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_repeated"):  # protobuf 6.31 and later; `label` is gone from 7
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)


def _find_messages() -> dict[str, Message]:
    """Every message type of onnx that can hold a TensorProto, by full name."""
    file = onnx.ModelProto.DESCRIPTOR.file
    tensor = onnx.TensorProto.DESCRIPTOR.full_name
    types = list(file.message_types_by_name.values())
    leads = {tensor}
    while True:
        found = {
            t.full_name for t in types if any(f.message_type and f.message_type.full_name in leads for f in t.fields)
        }
        if found <= leads:
            break
        leads |= found
    messages = {}
    for message_type in types:
        fields = [f for f in message_type.fields if f.message_type and f.message_type.full_name in leads]
        if fields and message_type.full_name != tensor:
            # A parser merges repeated occurrences of a singular field. Graphs merge harmlessly: all that they hold of
            # tensors is repeated, and so is concatenated.
            graph = onnx.GraphProto.DESCRIPTOR.full_name
            merging = (f.number for f in fields if not _is_repeated(f) and f.message_type.full_name != graph)
            children = {f.number: f.message_type for f in fields}
            messages[message_type.full_name] = Message(children, frozenset(merging))
    return messages


MESSAGES = _find_messages()
_TENSOR = onnx.TensorProto.DESCRIPTOR.full_name
_MODEL = onnx.ModelProto.DESCRIPTOR.full_name


def encode_varint(value: int) -> bytes:
    """A non-negative integer in base 128, least significant group first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """The integer at `position`, and the position behind it. Raises `WireError`."""
    value = shift = 0
    for index in range(position, min(end, position + 10)):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, index + 1
        shift += 7
    raise WireError(f"a number at byte {position} is cut off or too long")


def scan_fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that spans [start, end), in order; a group is one field. Raises `WireError`."""
    position = start
    while position < end:
        field = _scan_field(buffer, position, end, 0)
        if field.wire_type == _END_GROUP:
            raise WireError(f"a group ends at byte {position} that was never begun")
        yield field
        position = field.end


def _scan_field(buffer: Buffer, start: int, end: int, depth: int) -> Field:
    tag, payload = decode_varint(buffer, start, end)
    number, wire_type = tag >> 3, tag & 7
    if not 0 < number < 1 << 29:
        raise WireError(f"byte {start} begins no field")
    match wire_type:
        case 0:  # varint
            stop = decode_varint(buffer, payload, end)[1]
        case 1:  # fixed 64
            stop = payload + 8
        case 2:  # length-delimited
            length, payload = decode_varint(buffer, payload, end)
            stop = payload + length
        case 3:  # group
            stop = _scan_group(buffer, payload, end, number, depth)
        case 4:  # end of a group
            stop = payload
        case 5:  # fixed 32
            stop = payload + 4
        case _:
            raise WireError(f"byte {start} begins no field")
    if stop > end:
        raise WireError(f"the field at byte {start} should end at byte {stop}, but only {end} bytes are there")
    return Field(number, wire_type, start, payload, stop)


def _scan_group(buffer: Buffer, position: int, end: int, number: int, depth: int) -> int:
    """The position behind a group; onnx has none, but unknown fields may."""
    if depth >= MAX_DEPTH:
        raise WireError(f"groups are nested more than {MAX_DEPTH} deep at byte {position}")
    while position < end:
        field = _scan_field(buffer, position, end, depth + 1)
        if field.wire_type == _END_GROUP:
            if field.number != number:
                break
            return field.end
        position = field.end
    raise WireError(f"the group that surrounds byte {position} has no end")


def rewrite_tensors(buffer: Buffer, interesting: Callable[[int, int], bool], edit: Edit) -> list[Piece]:
    """A serialized ModelProto with some of its tensors replaced.

    Parameters
    ----------
    buffer : the serialized ModelProto.
    interesting : whether a message that spans [start, end) can hold a tensor to be edited; others aren't read.
    edit : the replacement of one TensorProto.

    Returns
    -------
    Pieces that, joined, are the new serialized ModelProto.

    Raises
    ------
    WireError : the bytes are no protobuf message.
    """
    pieces = _rewrite(buffer, 0, len(buffer), MESSAGES[_MODEL], interesting, edit, 0)
    return [buffer[:]] if pieces is None else pieces


def _rewrite(
    buffer: Buffer,
    start: int,
    end: int,
    message: Message,
    interesting: Callable[[int, int], bool],
    edit: Edit,
    depth: int,
) -> list[Piece] | None:
    """The pieces of one message, or None where nothing in it changes."""
    if depth >= MAX_DEPTH:
        return None
    # An edit of one of several tensors that a parser will merge would mix with the others: such oddities are kept.
    merged = _find_merged(buffer, start, end, message)
    pieces: list[Piece] = []
    kept = start
    for field in scan_fields(buffer, start, end):
        child = message.children.get(field.number)
        if child is None or field.wire_type != _LENGTH_DELIMITED or field.number in merged:
            continue
        if not interesting(field.payload, field.end):
            continue
        if child.full_name == _TENSOR:
            inner = edit(field.payload, field.end)
        else:
            inner = _rewrite(buffer, field.payload, field.end, MESSAGES[child.full_name], interesting, edit, depth + 1)
        if inner is not None:
            tag = encode_varint(field.number << 3 | _LENGTH_DELIMITED)
            pieces += [buffer[kept : field.start] + tag + encode_varint(count_bytes(inner)), *inner]
            kept = field.end
    if not pieces:
        return None
    pieces.append(buffer[kept:end])
    return pieces


def _find_merged(buffer: Buffer, start: int, end: int, message: Message) -> frozenset[int]:
    if not message.merging:
        return frozenset()
    counts = Counter(field.number for field in scan_fields(buffer, start, end) if field.number in message.merging)
    return frozenset(number for number, count in counts.items() if count > 1)


def count_bytes(pieces: Iterable[Piece]) -> int:
    """Number of bytes in all pieces together."""
    return sum(map(len, pieces))


def join_pieces(pieces: Iterable[Piece]) -> bytes:
    """All pieces as one bytes object."""
    joined = io.BytesIO()
    for piece in pieces:
        for chunk in piece_chunks(piece):
            joined.write(chunk)
    return joined.getvalue()


def piece_chunks(piece: Piece) -> Iterator[bytes | memoryview]:
    """The bytes of one piece, in chunks."""
    if isinstance(piece, bytes):
        yield piece
    else:
        yield from piece.chunks()
