"""Checkpoints put together here by hand, in both forms."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.torch_file import read_torch_file


class Global:
    """Pickled as a reference to a name in a module that isn't imported here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a global."""

    def __init__(self, function: Global, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """Pickled as a persistent reference to a storage."""

    def __init__(self, dtype: str, key: str, count: int) -> None:
        self.reference = ("storage", Global("torch", dtype), key, "cpu", count)


def dump(value: object) -> bytes:
    """Pickle protocol 0 by hand for what `pickle` can't write: names that can't be imported."""
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return dump(value.function) + dump(value.arguments) + b"R"
    if isinstance(value, Stored):
        return dump((*value.reference, None)) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(dump, value)) + b"t"
    if isinstance(value, dict):
        return b"(" + b"".join(dump(key) + dump(item) for key, item in value.items()) + b"d"
    return pickle.dumps(value, 2)[2:-1]


def tensor(storage: Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, OrderedDict())


def finish(value: object) -> bytes:
    return b"\x80\x02" + dump(value) + b"."


def write_zip(path: Path, state: object, storages: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", finish(state))
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_old(path: Path, state: object, storages: Mapping[str, bytes]) -> Path:
    out = BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, out, 2)
    out.write(finish(state))
    pickle.dump(list(storages), out, 2)
    for content in storages.values():
        out.write(struct.pack("<q", len(content) // 4) + content)
    path.write_bytes(out.getvalue())
    return path


Writer = Callable[[Path, object, Mapping[str, bytes]], Path]
VALUES = np.arange(12, dtype="<f4")
FLOATS = Stored("FloatStorage", "7", 12)


@pytest.mark.parametrize("write", [write_zip, write_old])
@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (3, 4), (4, 1), VALUES.reshape(3, 4)),
        (0, (4, 3), (1, 4), VALUES.reshape(3, 4).T),
        (5, (2,), (3,), VALUES[[5, 8]]),
        (2, (), (), VALUES[2]),
        (0, (0, 5), (5, 1), np.zeros((0, 5))),
    ],
)
def test_tensors_are_read_as_views_of_their_storages(
    tmp_path: Path,
    write: Writer,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    expected: NDArray[Any],
) -> None:
    state = {"a": tensor(FLOATS, offset, shape, strides), "epoch": 3}
    read = read_torch_file(write(tmp_path / "a.pth", state, {"7": VALUES.tobytes()}))
    assert list(read) == ["a"]
    assert read["a"].dtype == np.float32
    assert read["a"].shape == shape
    assert np.array_equal(read["a"], expected)


def test_an_integer_storage_has_its_dtype(tmp_path: Path) -> None:
    state = {"n": tensor(Stored("LongStorage", "0", 1), 0, (1,), (1,))}
    read = read_torch_file(write_zip(tmp_path / "a.pth", state, {"0": struct.pack("<q", -5)}))
    assert read["n"].dtype == np.int64
    assert read["n"].tolist() == [-5]


@pytest.mark.parametrize("write", [write_zip, write_old])
@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"a": Call(Global("os", "system"), "true")}, "it names os.system"),
        ({"a": Call(Global("builtins", "eval"), "1")}, "it names builtins.eval"),
        ({"a": Call(Global("torch._utils", "_rebuild_sparse_tensor"), "1")}, "it names torch._utils._rebuild_sparse"),
        ([1], "it holds a list, expected a dictionary"),
    ],
)
def test_a_file_that_names_anything_else_is_refused(tmp_path: Path, write: Writer, state: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_torch_file(write(tmp_path / "a.pth", state, {}))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (13,), (1,)), (-1, (2,), (1,)), (4, (3, 3), (3, 1)), (0, (2,), (-1,))]
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    path = write_zip(tmp_path / "a.pth", {"a": tensor(FLOATS, offset, shape, strides)}, {"7": VALUES.tobytes()})
    with pytest.raises(ValueError, match="tensor 'a' doesn't fit its storage"):
        read_torch_file(path)


@pytest.mark.parametrize("write", [write_zip, write_old])
def test_a_storage_that_was_cut_short_is_refused(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "a.pth", {"a": tensor(FLOATS, 0, (12,), (1,))}, {"7": VALUES.tobytes()[:-4]})
    with pytest.raises(ValueError, match=r"doesn't fit its storage|has 11 values, not 12"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1})])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a checkpoint of tensors"):
        read_torch_file(path)
