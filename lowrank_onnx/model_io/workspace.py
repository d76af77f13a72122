"""A private temporary directory beside a file that is to be written, which a killed process can't leave for good.

The directory is locked while its process lives (the system drops the lock of a killed one), so that the next run for
the same target can tell a leftover and remove it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowrank_onnx.errors import OutputError

if sys.platform != "win32":
    import fcntl

SUFFIX = ".lowrank-tmp"
JOURNAL = "obsolete.txt"
"""In a workspace: names of data files, one a line, that may be in nobody's use after a commit."""

_GRACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Workspace:
    """A temporary directory, and the descriptor that holds its lock (None where there are no such locks)."""

    path: Path
    lock: int | None

    def remove(self) -> None:
        """Remove the directory with all that is in it, and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


def open_workspace(target: Path) -> Workspace:
    """Make a locked directory beside `target`. Raises OSError."""
    path = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    path.mkdir(mode=0o700)
    return Workspace(path, _lock(path))


def resolve_target(path: Path) -> Path:
    """An output path made absolute. Raises `OutputError` where no file system could hold it."""
    try:
        usable = b"\0" not in os.fsencode(path) and path.name != ""
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise OutputError(f"{str(path)!a}: is no usable path: expected the path of a file; give another -o")
    return Path(os.path.abspath(path))


@contextlib.contextmanager
def report_os_errors(target: Path) -> Iterator[None]:
    """Turn what the system refuses while `target` is written into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: can't be written ({error.strerror or error}): expected a writable place with enough room;"
            " give another -o"
        ) from error


def find_leftovers(target: Path) -> Iterator[Workspace]:
    """The directories that killed runs for the same target left behind, locked by this process now."""
    if sys.platform == "win32":
        return  # no locks that tell a live run from a dead one
    pattern = re.compile(rf"\.{re.escape(target.name)}\.([0-9]{{1,10}})-[0-9a-f]{{8}}{re.escape(SUFFIX)}")
    for entry in sorted(target.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is None or entry.is_symlink():
            continue
        # Between mkdir and lock a directory looks left over, but its process is alive and it is young.
        with contextlib.suppress(OSError):
            if _is_alive(int(match[1])) and time.time() - entry.stat().st_mtime < _GRACE_SECONDS:
                continue
        lock = _lock(entry)
        if lock is not None:
            yield Workspace(entry, lock)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _lock(path: Path) -> int | None:
    """A descriptor that locks the directory; None where another process has it, or nothing can be locked."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power failure, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make what is in a file survive a power failure."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
