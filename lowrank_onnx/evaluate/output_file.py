"""Outputs of models on disk, for as long as a comparison needs them, in a file without a name."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from lowrank_onnx.errors import OutputError
from lowrank_onnx.types import Array

_LENGTH_BYTES = 8


class OutputFile:
    """Values in the order in which they were added: what runs of a model returned, or lists of that.

    Tensors are stored as the bytes that they are; all else, strings and what surrounds tensors in sequences and maps,
    as JSON. Where the system can, the file has no name, so that even a killed process leaves nothing behind.

    Parameters
    ----------
    directory : where there is room for it; None takes the system's temporary directory.

    Raises
    ------
    OutputError : it can't be made there, or there is no room for what is added.
    """

    def __init__(self, directory: Path | None) -> None:
        self._place = Path(tempfile.gettempdir()) if directory is None else directory
        with self._reporting_errors():
            self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115 - closed by `__exit__`
        self._reading = threading.Lock()
        self._count = 0
        self.nbytes = 0

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # what couldn't be written was reported before
                raise

    def close(self) -> None:
        """Give up the values and the room that they take."""
        self._file.close()

    def add(self, value: Any) -> None:
        """Add a value: a tensor, None, or a number, string, list, tuple or dict as onnxruntime returns them."""
        arrays: list[Array] = []
        head = json.dumps(_describe(value, arrays)).encode("ascii")
        with self._reporting_errors():
            self._file.write(len(head).to_bytes(_LENGTH_BYTES, "little") + head)
            for array in arrays:
                self._file.write(_as_bytes(array).data)
            self._file.flush()
        self._count += 1
        self.nbytes += _LENGTH_BYTES + len(head) + sum(array.nbytes for array in arrays)

    def __iter__(self) -> Iterator[Any]:
        """All values, one at a time in memory; nothing can be added meanwhile. Several threads can go through them."""
        place = 0
        for _ in range(self._count):
            with self._reading:
                self._file.seek(place)
                length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
                value = self._restore(json.loads(self._file.read(length)))
                place = self._file.tell()
            yield value

    def _restore(self, node: Any) -> Any:
        kind, *content = node
        match kind:
            case "value":
                return content[0]
            case "list":
                return [self._restore(entry) for entry in content[0]]
            case "map":
                return {key: self._restore(entry) for key, entry in content[0]}
            case "strings":
                strings = np.empty(len(content[1]), object)
                strings[:] = content[1]
                return strings.reshape(content[0])
        array = np.empty(content[1], np.dtype(getattr(ml_dtypes, content[0], content[0])))
        if self._file.readinto(_as_bytes(array).data) != array.nbytes:
            raise OutputError(f"the temporary file in {self._place} was cut short: expected it to be left alone")
        return array

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._place}: the outputs of a model can't be kept there ({error.strerror or error}): expected a "
                "writable place with enough room; give fewer feeds, or --two-sessions where memory allows it"
            ) from error


def _describe(value: Any, arrays: list[Array]) -> list[Any]:
    """What JSON can hold of a value; its tensors are put into `arrays`, in the order in which `_restore` meets them."""
    match value:
        case None | bool() | int() | float() | str():
            return ["value", value]
        case dict():
            return ["map", [[key, _describe(entry, arrays)] for key, entry in value.items()]]
        case list() | tuple():
            return ["list", [_describe(entry, arrays) for entry in value]]
    array = np.asarray(value)
    if array.dtype.kind in "OUT":
        return ["strings", array.shape, array.reshape(-1).tolist()]
    arrays.append(array)
    return ["tensor", array.dtype.name, array.shape]


def _as_bytes(array: Array) -> Array:
    """The memory of an array (a copy's where it isn't contiguous); dtypes of ml_dtypes have no buffers of their own."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
