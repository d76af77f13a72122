"""Read the tensors of a PyTorch checkpoint without PyTorch, and without running anything that the file names.

A checkpoint is a pickle of a dictionary in which each tensor refers to a storage, and the bytes of the storages: in
members of a zip archive since PyTorch 1.6, and before that one after the other behind the pickle. The unpickler here
knows the few names that such a dictionary needs and refuses every other.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

_DTYPES: Mapping[str, str] = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that the first pickle of an old checkpoint holds."""

_PROTOCOL = 1001


@dataclass(frozen=True, slots=True)
class _Storage:
    """A flat array of the file, and how many values it has."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: a strided view of a storage; strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> Tensors:
    """The tensors of a checkpoint that is a dictionary of tensors, by name; whatever else is in it is left out.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, names anything but tensors, or a tensor doesn't fit its storage.
    """
    try:
        views, storages = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
    except (pickle.UnpicklingError, EOFError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a checkpoint of tensors: {error}") from error
    return {name: _resolve(path, name, view, storages) for name, view in views.items()}


def _read_zip(path: Path) -> tuple[dict[str, _View], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError(f"{path}: holds {len(names)} files data.pkl instead of one")
        views = _tensors_only(_Unpickler(io.BytesIO(archive.read(names[0]))).load())
        prefix = names[0].removesuffix("data.pkl")
        keys = {view.storage.key for view in views.values()}
        return views, {key: archive.read(f"{prefix}data/{key}") for key in keys}


def _read_old(path: Path) -> tuple[dict[str, _View], dict[str, bytes]]:
    with path.open("rb") as stream:
        if (_Unpickler(stream).load(), _Unpickler(stream).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError(f"{path}: not a checkpoint of tensors: neither a zip archive nor the older form")
        _Unpickler(stream).load()  # sizes of C types where it was written
        views = _tensors_only(_Unpickler(stream).load())
        storages = {view.storage.key: view.storage for view in views.values()}
        keys = _Unpickler(stream).load()
        return views, {key: _read_storage(stream, path, storages[key]) for key in keys}


def _read_storage(stream: BinaryIO, path: Path, storage: _Storage) -> bytes:
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.count:
        raise ValueError(f"{path}: storage {storage.key!r} has {count} values, not {storage.count}")
    return stream.read(count * np.dtype(storage.dtype).itemsize)


def _tensors_only(loaded: Any) -> dict[str, _View]:
    if not isinstance(loaded, dict):
        raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}, expected a dictionary")
    return {str(name): value for name, value in loaded.items() if isinstance(value, _View)}


def _resolve(path: Path, name: str, view: _View, storages: Mapping[str, bytes]) -> NDArray[Any]:
    dtype, content = np.dtype(view.storage.dtype), storages[view.storage.key]
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    empty = math.prod(view.shape) == 0
    whole = len(content) == view.storage.count * dtype.itemsize
    if not whole or min((view.offset, *view.shape, *view.strides)) < 0 or not (empty or last < view.storage.count):
        raise ValueError(f"{path}: tensor {name!r} doesn't fit its storage")
    values = np.frombuffer(content, dtype)[view.offset :]
    strides = tuple(stride * dtype.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(values, view.shape, strides).copy()


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _View, *_: object) -> _View:
    return data


_KNOWN: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count, *_ = reference
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"it refers to {reference!r}")
        return _Storage(str(key), dtype, int(count))
