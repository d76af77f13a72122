"""From the command line's options to a budget, gates and files that may be written: checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from lowrank_onnx.config import (
    OP_TYPES,
    Alpha,
    Budget,
    Energy,
    FixedRank,
    Gates,
    KeepMacs,
    KeepParams,
    MaxError,
)
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.report.escape import printable

DEFAULT_MAX_ERROR = 0.05
"""The budget when none is given: ``--max-error 0.05``."""

GivenBudgets: TypeAlias = Mapping[str, Budget]


def given_budgets(
    rank: int | None,
    alpha: float | None,
    energy: float | None,
    keep_params: float | None,
    keep_macs: float | None,
) -> GivenBudgets:
    """The budgets whose flags were given, by flag. A value out of range raises `UsageError`."""
    found: dict[str, Budget] = {}
    if rank is not None:
        found["--rank"] = FixedRank(rank)
    if alpha is not None:
        found["--alpha"] = Alpha(alpha)
    if energy is not None:
        found["--energy"] = Energy(energy)
    if keep_params is not None:
        found["--keep-params"] = KeepParams(keep_params)
    if keep_macs is not None:
        found["--keep-macs"] = KeepMacs(keep_macs)
    return found


def budget_and_gates(
    given: GivenBudgets, *, max_error: float | None, min_sqnr: float | None, min_top1: float | None
) -> tuple[Budget, Gates]:
    """Settle the budget: the one that was given, with ``--max-error`` as a gate; else ``--max-error`` itself.

    Raises
    ------
    UsageError
        If two budgets were given.
    """
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)}: expected one budget, drop {'all but one' if len(given) > 2 else 'one'}"
        )
    if not given:
        budget: Budget = MaxError(DEFAULT_MAX_ERROR if max_error is None else max_error)
        return budget, Gates(min_sqnr_db=min_sqnr, min_top1=min_top1)
    gates = Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1)
    return next(iter(given.values())), gates


def split_op_types(values: list[str] | None) -> tuple[str, ...]:
    """``--op-types MatMul,Gemm --op-types Conv`` as a tuple without repetitions; all of them when not given."""
    if values is None:
        return OP_TYPES
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
    if report is None or str(report) == "-":
        return
    shown = printable(str(report))
    if report.is_dir():
        raise OutputError(f"--json {shown}: is a directory, give a file name such as {shown}/report.json")
    if any(other is not None and _same_file(report, other) for other in others):
        raise OutputError(f"--json {shown}: is one of the command's other files, give another name")
    _check_directory("--json", report)


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
