"""What the command line does with a terminal: consoles, progress bars, one-line errors, exit codes."""

from __future__ import annotations

import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from lowrank_onnx.cli.checks import check_debug
from lowrank_onnx.cli.config_file import options_text
from lowrank_onnx.cli.debug_bundle import LoggedProgress, Recorder, current_recorder, recording
from lowrank_onnx.errors import LowRankError
from lowrank_onnx.progress import SILENT, StageProgress
from lowrank_onnx.progress import Progress as ProgressProtocol
from lowrank_onnx.report.escape import printable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""As a shell reports a process that SIGPIPE (13) or, for 130, SIGINT (2) has ended; 70 is EX_SOFTWARE of sysexits.h."""

DEBUG_VARIABLE = "LOWRANK_ONNX_DEBUG"
"""Environment variable: set to anything but the empty string, errors come with their traceback."""

_Parameters = ParamSpec("_Parameters")

NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})


class _PipeConsole(Console):
    """A console that lets a closed pipe reach the caller instead of ending the process with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def output_console() -> Console:
    """For reports: standard output, 80 columns where that is no terminal."""
    return _PipeConsole(highlight=False, emoji=False, markup=False)


def prepare_streams() -> None:
    """Show what the terminal's encoding lacks as escapes, rather than fail on a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_output() -> None:
    """After a broken pipe: let the interpreter's last flush go nowhere, so that it doesn't complain."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a captured or closed stream has none, and needs none
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def say_error(message: str) -> None:
    """One line on standard error."""
    print(f"error: {printable(message)}", file=sys.stderr)


def _say_traceback() -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()


def _what_to_attach(parameters: Mapping[str, Any]) -> str:
    """How to get at what a report of a bug needs; `parameters` are those of the command."""
    debug = parameters.get("debug")
    if isinstance(debug, Path) and debug.is_file():
        return f"attach {debug}, which holds no weights"
    ways = ["the same with --debug FILE.zip writes what to attach, without weights"] if "debug" in parameters else []
    if not os.environ.get(DEBUG_VARIABLE):
        ways.append(f"{DEBUG_VARIABLE}=1 shows the traceback")
    return "; ".join(ways)


def _how_to_resume(parameters: Mapping[str, Any]) -> str:
    if "cache" not in parameters:
        return "run it again"
    cache = parameters["cache"]
    if cache is None:
        return "with --cache DIR the next run goes on where this one was"
    return f"run the same command again, and it goes on from what is in {cache}"


def error_exit_code(error: BaseException, parameters: Mapping[str, Any] = NO_PARAMETERS) -> int:
    """Tell the user what happened in one line, and return the exit code that goes with it.

    `parameters` are those of the command, by name: what it can be told to do next depends on what it has.
    """
    match error:
        case LowRankError():
            say_error(str(error))
            code = error.exit_code
        case KeyboardInterrupt():
            say_error(f"interrupted, no model was written: {_how_to_resume(parameters)}")
            code = EXIT_INTERRUPTED
        case BrokenPipeError():
            silence_output()
            return EXIT_BROKEN_PIPE
        case MemoryError():
            say_error("not enough memory: close other programs, or use a machine with more of it")
            code = EXIT_BUG
        case _:
            attach = _what_to_attach(parameters)
            hint = f" ({attach})" if attach else ""
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            say_error(f"this is a bug in lowrank-onnx, please report it: {what}{hint}")
            code = EXIT_BUG
    _say_traceback()
    return code


def reporting_errors(command: Callable[_Parameters, int]) -> Callable[_Parameters, int]:
    """Decorate a command: whatever it raises ends as one line and an exit code, and ``--debug`` records what it did."""

    @functools.wraps(command)
    def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> int:
        try:
            with _recording(kwargs):
                code = command(*args, **kwargs)
                sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            return error_exit_code(error, kwargs)
        return code

    return guarded


def _recording(parameters: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Records the command that has these parameters, where it was given ``--debug``."""
    path, context = parameters.get("debug"), parameters.get("context")
    if path is None or context is None:
        return nullcontext()
    models = [parameters[name] for name in ("model", "original", "candidate") if name in parameters]
    check_debug(path, (*models, *(parameters.get(name) for name in ("output", "json", "html", "calib", "data"))))
    try:
        options = options_text(context)
    except (TypeError, ValueError) as error:  # a name that isn't UTF-8
        options = f"# can't be written as TOML: {printable(str(error))}\n"
    return recording(Recorder(models, context.obj or (), options), path)


class _Stage:
    """The bar of one stage."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, n: int = 1, detail: str = "") -> None:
        self._bars.update(self._task, advance=n, detail=printable(detail))


class _TimeColumn(ProgressColumn):
    """Time left, or where nobody knows how much there is to do, the time that it has taken so far."""

    def __init__(self) -> None:
        super().__init__()
        self._left, self._taken = TimeRemainingColumn(compact=True, elapsed_when_finished=True), TimeElapsedColumn()

    def render(self, task: Task) -> Text:
        """The time of one bar."""
        if task.total is not None:
            return Text.assemble(self._left.render(task), (" left", "dim") if not task.finished else "")
        return Text.assemble(self._taken.render(task), (" so far", "dim"))


class TerminalProgress:
    """Progress bars on standard error, one for each open stage; they disappear when the work is done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[StageProgress]:
        """Show one more bar for as long as the context lasts."""
        task = self._bars.add_task(printable(name), total=total, detail="")
        try:
            yield _Stage(self._bars, task)
        finally:
            self._bars.remove_task(task)


@contextmanager
def showing_progress(*, quiet: bool) -> Iterator[ProgressProtocol]:
    """Bars where standard error is a terminal and the user wants them; silence elsewhere."""
    recorder = current_recorder()
    with _bars(quiet=quiet) as progress:
        yield progress if recorder is None else LoggedProgress(progress, recorder)


@contextmanager
def _bars(*, quiet: bool) -> Iterator[ProgressProtocol]:
    console = _PipeConsole(stderr=True)
    if quiet or not console.is_terminal:
        yield SILENT
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _TimeColumn(),
        TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as bars:
        yield TerminalProgress(bars)
