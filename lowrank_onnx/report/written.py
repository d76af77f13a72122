"""Reports appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lowrank_onnx.errors import OutputError
from lowrank_onnx.report.escape import printable


def write_text(text: str, path: Path, *, flag: str) -> None:
    """Write a report: a reader sees the old file or the whole new one, never a part.

    What isn't a regular file (``/dev/null``, a pipe) is written to, not replaced.

    Raises
    ------
    OutputError
        If it can't be written, with the `flag` that asked for it; no partial file is left.
    """
    write_bytes(text.encode("utf-8", "backslashreplace"), path, flag=flag)


def write_bytes(content: bytes, path: Path, *, flag: str) -> None:
    """`write_text` for what is no text."""
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{flag} {printable(str(path))}: can't be written ({reason}): give another path") from error


def _replace(target: Path, content: bytes) -> None:
    with whole_file(target) as stream:
        stream.write(content)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `target` at the end, and of which nothing stays after an error."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
