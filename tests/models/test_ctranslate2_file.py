from __future__ import annotations

import struct

import numpy as np
import pytest

from models.ctranslate2_file import read_ctranslate2


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, shape: tuple[int, ...], kind: int, content: bytes) -> bytes:
    head = text(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return head + struct.pack("<BI", kind, len(content)) + content


def model(*variables: bytes, version: int = 6) -> bytes:
    aliases = struct.pack("<I", 1) + text("b") + text("a")
    return (
        struct.pack("<I", version)
        + text("Spec")
        + struct.pack("<II", 3, len(variables))
        + b"".join(variables)
        + aliases
    )


def test_variables_are_read_with_name_type_and_shape() -> None:
    half, small = np.arange(6, dtype="<f2").reshape(2, 3), np.array(-3, np.int8)
    read = read_ctranslate2(model(variable("a/w", (2, 3), 4, half.tobytes()), variable("n", (), 1, small.tobytes())))
    assert list(read) == ["a/w", "n"]
    assert read["a/w"].dtype == np.float16
    assert np.array_equal(read["a/w"], half)
    assert read["n"].shape == ()
    assert read["n"] == -3


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="a file of version 5: expected version 6"):
        read_ctranslate2(model(version=5))


@pytest.mark.parametrize(("shape", "kind", "size"), [((2,), 0, 4), ((2,), 9, 8), ((1 << 30, 1 << 30), 0, 4)])
def test_a_variable_of_the_wrong_size_is_refused(shape: tuple[int, ...], kind: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"variable 'w' of type {kind} and shape .* can't have {size} bytes"):
        read_ctranslate2(model(variable("w", shape, kind, bytes(size))))


@pytest.mark.parametrize("length", [0, 3, 20, 40])
def test_a_file_that_ends_early_is_refused(length: int) -> None:
    whole = model(variable("w", (4,), 0, bytes(16)))
    with pytest.raises(ValueError, match=f"the file ends at byte {length}"):
        read_ctranslate2(whole[:length])
