"""What the command line checks before any work is done: the files that it may write, the feeds that must be there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from lowrank_onnx.errors import MissingDependencyError, OutputError, UsageError, how_to_install
from lowrank_onnx.report.escape import printable


def split_names(values: list[str] | None, everything: tuple[str, ...]) -> tuple[str, ...]:
    """``--op-types MatMul,Gemm --op-types Conv`` as a tuple without repetitions; all there is when not given."""
    if values is None:
        return everything
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


def default_output(model: Path) -> Path:
    """``<stem>.lowrank.onnx`` beside the model."""
    return model.with_name(f"{model.stem}.lowrank.onnx")


def _same_file(first: Path, second: Path) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def check_output(output: Path, model: Path, *, force: bool) -> None:
    """Refuse an output that can't or must not be written, before any work is done.

    Raises
    ------
    OutputError
        With the reason and the fix.
    """
    shown = printable(str(output))
    if output.is_dir():
        raise OutputError(f"--output {shown}: is a directory, give a file name such as {shown}/small.onnx")
    if _same_file(output, model):
        raise OutputError(f"--output {shown}: is the model itself, which is never changed: give another name")
    if output.exists() and not force:
        raise OutputError(f"--output {shown}: exists already, give another name or --force to replace it")
    _check_directory("--output", output)


def check_json(report: Path | None, others: Iterable[Path | None]) -> None:
    """Refuse a report that would replace one of the command's other files, or that can't be written.

    Raises
    ------
    OutputError
        With the reason and the fix.
    """
    if report is not None and str(report) != "-":
        _check_report("--json", report, others)


def check_html(report: Path | None, others: Iterable[Path | None]) -> None:
    """Refuse a page for the reasons of `check_json`, or because what draws it isn't installed.

    Raises
    ------
    OutputError, MissingDependencyError
        With the reason and the fix.
    """
    if report is None:
        return
    _check_report("--html", report, others)
    if any(importlib.util.find_spec(package) is None for package in ("jinja2", "matplotlib")):
        raise MissingDependencyError(
            f"--html {printable(str(report))}: needs jinja2 and matplotlib: "
            f"{how_to_install('html', 'jinja2 matplotlib')}, or use --json"
        )


def check_debug(bundle: Path, others: Iterable[Path | None]) -> None:
    """Refuse a bundle for the reasons of `check_json` (`OutputError`)."""
    _check_report("--debug", bundle, others)


def _check_report(flag: str, report: Path, others: Iterable[Path | None]) -> None:
    shown = printable(str(report))
    if report.is_dir():
        raise OutputError(f"{flag} {shown}: is a directory, give a file name such as {shown}/report{_SUFFIXES[flag]}")
    if any(other is not None and _same_file(report, other) for other in others):
        raise OutputError(f"{flag} {shown}: is one of the command's other files, give another name")
    _check_directory(flag, report)


_SUFFIXES = {"--json": ".json", "--html": ".html", "--debug": ".zip"}


def _check_directory(flag: str, path: Path) -> None:
    directory = Path(os.path.realpath(path)).parent
    shown = printable(str(directory))
    if not directory.is_dir():
        raise OutputError(f"{flag} {printable(str(path))}: {shown} is no directory, create it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"{flag} {printable(str(path))}: {shown} can't be written, choose another directory")


def check_feeds(flag: str, feeds: Path | None) -> None:
    """Refuse feeds that aren't there, before any work is done (`UsageError`)."""
    if feeds is not None and not feeds.exists():
        raise UsageError(
            f"{flag} {printable(str(feeds))}: no such file or directory, expected an .npz, a directory of .npz or of "
            "test_data_set_*"
        )
