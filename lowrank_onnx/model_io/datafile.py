"""External data files: their layout, their names, and which of them nobody needs any more."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.assembly import was_external
from lowrank_onnx.model_io.loading import STRIP_BYTES, find_locations
from lowrank_onnx.model_io.model import Model
from lowrank_onnx.model_io.sources import Provided, Source, SourceFile
from lowrank_onnx.model_io.tensors import FoundTensor, count_tensor_bytes, find_tensors

_LARGE_BYTES = 1 << 20
_PAGE = 4096
_CACHE_LINE = 64


def plan_data(model: Model, *, spill: bool) -> dict[Source, int]:
    """Which bytes go into the data file of a model, and at which offset, in order.

    What was external stays so, wherever it is. New initializers of 1 KiB and more join it; with `spill` (the rest
    wouldn't fit into one protobuf message) initializers that were inline do, too. Equal sources are stored once.
    Tensors of 1 MiB and more begin at a page, so that they can be mapped, others at a cache line.
    """
    offsets: dict[Source, int] = {}
    end = 0
    for found in find_tensors(model.skeleton):
        source = model.store.find_source(found.tensor)
        if source is None or source in offsets:
            continue
        if was_external(model, found.tensor, source) or _is_movable(found, source, spill=spill):
            alignment = _PAGE if len(source) >= _LARGE_BYTES else _CACHE_LINE
            offsets[source] = -(-end // alignment) * alignment
            end = offsets[source] + len(source)
    return offsets


def _is_movable(found: FoundTensor, source: Source, *, spill: bool) -> bool:
    """Whether bytes that weren't external may become so. Those of a wrong number stay inline: readers would refuse."""
    if not found.initializer or len(source) < STRIP_BYTES or not (spill or isinstance(source, Provided)):
        return False
    return len(source) == count_tensor_bytes(found.tensor)


def count_data_bytes(offsets: Mapping[Source, int]) -> int:
    """The size of the data file."""
    return max((offset + len(source) for source, offset in offsets.items()), default=0)


def write_data(file: BinaryIO, offsets: Mapping[Source, int]) -> str:
    """Write the data file in one pass, chunk by chunk; returns the 16 hexadecimal digits of its contents' hash.

    Raises OSError, and `ModelError` where a source can't be read.
    """
    digest = hashlib.sha256()
    position = 0
    for source, offset in offsets.items():
        padding = bytes(offset - position)
        file.write(padding)
        digest.update(padding)
        for chunk in source.chunks():
            file.write(chunk)
            digest.update(chunk)
        position = offset + len(source)
    return digest.hexdigest()[:16]


def name_data(target: Path, digest: str) -> str:
    """The name of the data file with these contents of the model `target`."""
    return f"{target.stem}.{digest}.data"


def find_own_data(target: Path) -> frozenset[str]:
    """The data files that the model at `target` references and that are named as this package names them."""
    try:
        locations = find_locations(target)
    except ModelError:
        return frozenset()
    return frozenset(location for location in locations if _is_own(target, location))


def _is_own(target: Path, name: str) -> bool:
    """Whether a data file is named as `name_data` names those of `target`."""
    return re.fullmatch(rf"{re.escape(target.stem)}\.[0-9a-f]{{16}}\.data", name) is not None


def remove_obsolete(target: Path, names: Iterable[str], needed: Collection[SourceFile]) -> None:
    """Remove those data files of earlier models at `target` that no model beside it references any more.

    A file stays where a model can't be read, and might reference it, and where it is among `needed`. Raises OSError.
    """
    candidates = {name for name in names if _is_own(target, name) and (target.parent / name).is_file()}
    if not candidates:
        return
    for model in {target, *target.parent.glob("*.onnx")}:
        if model.is_file():
            try:
                candidates -= find_locations(model)
            except ModelError:
                return
    for name in sorted(candidates):
        path = target.parent / name
        status = path.stat()
        if not any((file.device, file.inode) == (status.st_dev, status.st_ino) for file in needed):
            path.unlink()
