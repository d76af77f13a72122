"""``--debug FILE``: what a report of a problem needs, in one zip, without weights and without data."""

from __future__ import annotations

import io
import json
import shlex
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_onnx.errors import OutputError
from lowrank_onnx.progress import Progress, StageProgress
from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.written import write_bytes

_ABOUT = """\
What `lowrank-onnx --debug` wrote about one run, to be attached to a report of a problem.

command.txt    the command
options.toml   all options of it, those left at their defaults too
versions.json  of lowrank-onnx, its libraries, Python and the platform
log.txt        the stages and how long they took
traceback.txt  where it failed, if it did
*.onnx         the graphs: names, operators, shapes and types. No tensor has values, whether weight, constant or
               attribute; lists of numbers, long strings and the text of metadata are left out too
report.json    the report, if the run came to one: figures by layer, such as errors and ranks

There are no weights and no feeds in here. Names of files, nodes and tensors are: look through it before you send it.
"""

_DETAIL_SECONDS = 1.0
"""Least time between two lines of the log on one stage."""


@dataclass(slots=True)
class Recorder:
    """Collects what one run did.

    Attributes
    ----------
    models : the files whose graphs are kept.
    command : the program's arguments.
    options : a TOML text.
    document : the JSON report, once there is one.
    lines : of the log.
    """

    models: Sequence[Path]
    command: Sequence[str]
    options: str
    document: Mapping[str, Any] | None = None
    lines: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Add a line to the log."""
        self.lines.append(f"{time.monotonic() - self.started:10.3f} s  {printable(text)}")

    def write(self, path: Path, error: BaseException | None) -> None:
        """Write the zip whole or not at all (`OutputError`)."""
        from lowrank_onnx.accounting import versions

        entries = {
            "about.txt": _ABOUT,
            "command.txt": printable(shlex.join(("lowrank-onnx", *self.command))) + "\n",
            "options.toml": self.options,
            "versions.json": json.dumps(versions(), indent=2) + "\n",
            "log.txt": "".join(f"{line}\n" for line in self.lines),
        }
        if error is not None:
            entries["traceback.txt"] = "".join(traceback.format_exception(error))
        if self.document is not None:
            entries["report.json"] = json.dumps(self.document, indent=2) + "\n"
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in entries.items():
                archive.writestr(name, text.encode("utf-8", "backslashreplace"))
            for number, model in enumerate(self.models):
                name, content = _graph_entry(model)
                archive.writestr(name if number == 0 else f"{number + 1}.{name}", content)
        write_bytes(stream.getvalue(), path, flag="--debug")


def _graph_entry(model: Path) -> tuple[str, bytes]:
    """The name and the content of a graph's file; where it can't be read, of a text that says why."""
    from lowrank_onnx.bare_graph import bare_graph
    from lowrank_onnx.model_io import load_model

    try:
        return "graph.onnx", bare_graph(load_model(model).skeleton).SerializeToString()
    except Exception as error:  # a model that can't be read may be what the report is about
        return "graph.txt", f"the graph can't be read: {type(error).__name__}: {error}\n".encode(errors="replace")


_CURRENT: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def current_recorder() -> Recorder | None:
    """The recorder of this run, where ``--debug`` was given."""
    return _CURRENT.get()


@contextmanager
def recording(recorder: Recorder, path: Path) -> Iterator[None]:
    """Record what runs inside, and write it when that ends, however it does."""
    token = _CURRENT.set(recorder)
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        recorder.say(f"{type(error).__name__}: {error}")
        raise
    finally:
        _CURRENT.reset(token)
        with suppress(OutputError) if failure is not None else nullcontext():  # what failed first is what matters
            recorder.write(path, failure)


class _LoggedStage:
    def __init__(self, inner: StageProgress, recorder: Recorder, name: str) -> None:
        self._inner, self._recorder, self._name = inner, recorder, name
        self._done, self._last = 0, float("-inf")

    def advance(self, n: int = 1, detail: str = "") -> None:
        self._inner.advance(n, detail)
        self._done += n
        now = time.monotonic()
        if now - self._last >= _DETAIL_SECONDS:
            self._last = now
            self._recorder.say(f"  {self._name} {self._done}: {detail}")


class LoggedProgress:
    """Passes stages on, and keeps when each began and ended."""

    def __init__(self, inner: Progress, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[StageProgress]:
        """Open a stage, and log it."""
        self._recorder.say(f"{name}: begins{'' if total is None else f', {total} units'}")
        with self._inner.stage(name, total) as inner:
            yield _LoggedStage(inner, self._recorder, name)
        self._recorder.say(f"{name}: ends")
