"""The command line's points of a sweep: which budgets to try, and which point to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from lowrank_onnx.config import Budget, KeepMacs, KeepParams, Speedup
from lowrank_onnx.errors import UsageError

_POINTS = "Points: which budgets to try (give one)"

DEFAULT_POINTS = (0.8, 0.7, 0.6, 0.5, 0.4)
"""The shares of the MACs that a sweep tries when no points are given."""

SweepParamsOption = Annotated[
    str | None,
    typer.Option(
        "--keep-params", metavar="F,F,...", help="Shares of the eligible weights to keep.", rich_help_panel=_POINTS
    ),
]
SweepMacsOption = Annotated[
    str | None,
    typer.Option(
        "--keep-macs",
        metavar="F,F,...",
        help="Shares of the eligible weights' multiply-accumulates to keep.",
        show_default=",".join(map(str, DEFAULT_POINTS)),
        rich_help_panel=_POINTS,
    ),
]
SweepSpeedupOption = Annotated[
    str | None,
    typer.Option(
        "--speedup", metavar="S,S,...", help="Speeds of the whole model, times the original's.", rich_help_panel=_POINTS
    ),
]
PickOption = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="The point to write to -o: knee (where compression begins to cost more than it brings), speedup=S (least "
        "error at S times the speed), error=E, agreement=F or drop=D (most compressed within a relative error of E, "
        "with the same first answer in the share F of samples, or with --metric at most D worse, in its unit).",
        show_default="nothing is written",
        rich_help_panel=_POINTS,
    ),
]


def sweep_points(keep_params: str | None, keep_macs: str | None, speedup: str | None) -> tuple[Budget, ...]:
    """The budgets of a sweep, from the one list that was given (`UsageError` where that makes no sense)."""
    kinds: Mapping[str, tuple[str | None, type[KeepParams | KeepMacs | Speedup]]] = {
        "--keep-params": (keep_params, KeepParams),
        "--keep-macs": (keep_macs, KeepMacs),
        "--speedup": (speedup, Speedup),
    }
    given = [(flag, text, kind) for flag, (text, kind) in kinds.items() if text is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(flag for flag, _, _ in given)}: expected one list of points, drop the others")
    if not given:
        return tuple(map(KeepMacs, DEFAULT_POINTS))
    flag, text, kind = given[0]
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{flag} {text}: expected numbers with commas between them, e.g. {flag} 0.8,0.6") from None
    if not values:
        raise UsageError(f"{flag} {text!r}: expected at least one number, e.g. {flag} 0.8,0.6")
    return tuple(map(kind, values))
