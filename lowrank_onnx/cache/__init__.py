"""Results kept on disk by what they were computed from, so that a later run, or one after a kill, computes them once.

An entry's name is a digest of everything that its contents depend on: the bytes of weights and feeds, the options, the
versions and the machine. Change one of them and the name is another, so that a wrong entry is never found; nothing has
to be told apart by date. An entry that is damaged, or isn't what its name says, counts as absent, with a note.

Entries are written under a temporary name and renamed, so that any number of runs can share a directory, and it can be
deleted whole or in part at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from lowrank_onnx.cache.digest import Digest, content_digest
from lowrank_onnx.cache.entry_file import Entry, read_entry, write_entry
from lowrank_onnx.errors import OutputError

STALE_SECONDS = 86_400.0
"""A temporary file that nobody has written to for so long is a killed run's, and is removed."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\..*\.tmp")

Facts: TypeAlias = Callable[[], Iterable[object]]
"""What a result depends on; asked for only where there is a cache. `content_digest` says what it may hold."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How a result becomes an entry and back.

    Attributes
    ----------
    shapes : name -> shape of each array that an entry must hold, no more and no fewer.
    encode : the entry for a result; None where it isn't worth keeping.
    decode : the result; raises `KeyError`, `TypeError` or `ValueError` where the entry isn't one of this kind.
    """

    shapes: Mapping[str, tuple[int, ...]]
    encode: Callable[[T], Entry | None]
    decode: Callable[[Entry], T]


class Slot(Protocol):
    """The place of one result."""

    def get(self, codec: Codec[T]) -> T | None:
        """The result, if it is there and whole."""
        ...

    def put(self, codec: Codec[T], result: T) -> None:
        """Keep the result."""
        ...


class Cache(Protocol):
    """Finds the place of a result."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What went wrong with entries, in sentences for a user."""
        ...

    def slot(self, kind: str, facts: Facts) -> Slot:
        """The place of a result of this kind that depends on these facts."""
        ...

    def scoped(self, facts: Facts) -> Cache:
        """The same cache for results that depend on these facts too; they are asked for once, when first needed."""
        ...

    def directory(self, name: str) -> Path | None:
        """A place for what keeps its own entries; None where nothing is to be kept."""
        ...


def remember(slot: Slot, codec: Codec[T], compute: Callable[[], T]) -> T:
    """The result from its slot, or computed and kept."""
    found = slot.get(codec)
    if found is None:
        found = compute()
        slot.put(codec, found)
    return found


class _NoCache:
    """Keeps nothing; it is its own slot."""

    notes: tuple[str, ...] = ()

    def slot(self, kind: str, facts: Facts) -> Slot:
        return self

    def scoped(self, facts: Facts) -> Cache:
        return self

    def directory(self, name: str) -> Path | None:
        return None

    def get(self, codec: Codec[T]) -> T | None:
        return None

    def put(self, codec: Codec[T], result: T) -> None:
        pass


NO_CACHE: Cache = _NoCache()
"""Where nothing is to be kept."""


def open_cache(directory: Path | None, environment: Facts) -> Cache:
    """The cache in a directory, which is made if need be; None keeps nothing.

    Parameters
    ----------
    environment : what every result depends on: versions, the machine.

    Raises
    ------
    OutputError : the directory can't be made or written to.
    """
    if directory is None:
        return NO_CACHE
    problem = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        problem = "is no directory"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    if problem is None and not os.access(directory, os.W_OK | os.X_OK):
        problem = "can't be written to"
    if problem is not None:
        raise OutputError(f"cache {str(directory)!a}: {problem}; give a directory that can be written")
    _remove_stale(directory)
    return _DirectoryCache(directory, environment, [])


def _remove_stale(directory: Path) -> None:
    oldest = time.time() - STALE_SECONDS
    for path in directory.glob("*/.*.tmp"):
        with contextlib.suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < oldest:
                path.unlink()


class _DirectoryCache:
    def __init__(self, directory: Path, facts: Facts, notes: list[str], parent: _DirectoryCache | None = None) -> None:
        self._directory = directory
        self._facts = facts
        self._notes = notes
        self._parent = parent
        self._scope: Digest | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def slot(self, kind: str, facts: Facts) -> Slot:
        key = content_digest(chain((self.scope(), kind), facts())).hex()
        return _FileSlot(self._directory / kind / f"{key}.entry", kind, key, self._notes)

    def scoped(self, facts: Facts) -> Cache:
        return _DirectoryCache(self._directory, facts, self._notes, self)

    def directory(self, name: str) -> Path | None:
        return self._directory / name

    def scope(self) -> Digest:
        if self._scope is None:
            above = b"" if self._parent is None else self._parent.scope()
            self._scope = content_digest(chain((above,), self._facts()))
        return self._scope


@dataclass(frozen=True, slots=True)
class _FileSlot:
    path: Path
    kind: str
    key: str
    notes: list[str]

    def get(self, codec: Codec[T]) -> T | None:
        if not self.path.is_file():  # a pipe would block
            return None
        try:
            with self.path.open("rb") as stream:
                return codec.decode(read_entry(stream, self.kind, self.key, codec.shapes))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"can't be read ({error.strerror})")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self._note(f"is damaged or foreign ({_one_line(error)})")
        return None

    def put(self, codec: Codec[T], result: T) -> None:
        entry = codec.encode(result)
        if entry is None:
            return
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced: what a power failure leaves unwritten doesn't pass the check when it is read.
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self.key}.", suffix=".tmp", dir=self.path.parent)
            with open(descriptor, "wb") as stream:
                write_entry(stream, self.kind, self.key, entry)
            os.replace(temporary, self.path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            self._add(f"cache {self.path.parent}: {error.strerror}; results were not kept")
        except BaseException:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise

    def _note(self, problem: str) -> None:
        self._add(f"cache entry {self.path} {problem}: ignored, and computed anew")

    def _add(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
