"""How long stages report that they move. The library is silent; whoever calls it may pass something that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class StageProgress(Protocol):
    """A handle on one running stage."""

    def advance(self, n: int = 1, detail: str = "") -> None:
        """Say that `n` more units of the stage are done, and what is being worked on."""


class Progress(Protocol):
    """Receives the stages of a long job."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[StageProgress]:
        """Open a stage of `total` units (None: not known beforehand); leaving the context ends it."""


class _SilentStage:
    def advance(self, n: int = 1, detail: str = "") -> None:
        """Do nothing."""


class SilentProgress:
    """Shows nothing: the default of every library call."""

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[StageProgress]:
        """Open a stage that is not shown."""
        yield _SilentStage()


SILENT: Progress = SilentProgress()
"""The default progress of every library call."""
