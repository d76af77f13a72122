"""The command line's budgets and gates: the flags, and the way from them to a `Budget` and `Gates`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import typer

from lowrank_onnx.config import (
    Alpha,
    Budget,
    Energy,
    FixedRank,
    Gates,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Objective,
    Speedup,
)
from lowrank_onnx.errors import UsageError

DEFAULT_MAX_ERROR = 0.05
"""The budget when none is given: ``--max-error 0.05``."""

_BUDGET = "Budget: how much to compress (give one)"
_GATES = "Gates: what the result must hold, or it is not written"


def whole_number(value: str) -> int:
    """Read the value of an option (`typer.BadParameter` where it is no whole number)."""
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a whole number") from None


def number(value: str) -> float:
    """Read the value of an option (`typer.BadParameter` where it is no number)."""
    try:
        result = float(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a number") from None
    if result != result:  # NaN: every comparison with it is false, so a gate would let everything pass
        raise typer.BadParameter(f"{value!r} is not a number")
    return result


# Budgets. A flag that isn't given is None.

RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank", metavar="R", help="The same rank for every weight.", parser=whole_number, rich_help_panel=_BUDGET
    ),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="r = ceil(A * min(in, out)) for every weight. Weights where that would store more stay dense.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
EnergyOption = Annotated[
    float | None,
    typer.Option(
        metavar="E",
        help="For each weight the smallest rank that keeps the share E of its squared Frobenius norm.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
KeepParamsOption = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Keep the share F of the eligible weights' parameters, where they do the least damage.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
KeepBytesOption = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="The same in bytes as stored, where weights have several types.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
KeepMacsOption = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Keep the share F of the eligible weights' multiply-accumulates in one run.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
SpeedupOption = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="Make the model S times as fast as it is, as measured here, where that does the least damage.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        metavar="E",
        help="Largest relative L2 error of the model's outputs on the feeds. Alone it is the budget: the smallest "
        "model within it is searched for. Beside another budget it is a gate.",
        show_default=f"{DEFAULT_MAX_ERROR} where no budget is given",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="How much worse --metric may become, in its unit. Alone it is the budget: the smallest model within it "
        "is searched for. Beside another budget it is a gate. If the metric tells samples apart, the drop is bounded "
        "with 95 % confidence for data drawn like them.",
        parser=number,
        rich_help_panel=_BUDGET,
    ),
]

# Gates

MinSqnrOption = Annotated[
    float | None,
    typer.Option(
        metavar="DB", help="Least signal-to-noise ratio of any output, in dB.", parser=number, rich_help_panel=_GATES
    ),
]
MinTop1Option = Annotated[
    float | None,
    typer.Option(
        "--min-top1",
        metavar="F",
        help="Least share of samples whose top class, or of answers (integers, bools, strings), that stays the same.",
        parser=number,
        rich_help_panel=_GATES,
    ),
]
MaxErrorGateOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="E",
        help="Largest relative L2 error of any output.",
        parser=number,
        rich_help_panel=_GATES,
    ),
]
MaxDropGateOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="D",
        help="How much worse --metric may become, in its unit.",
        parser=number,
        rich_help_panel=_GATES,
    ),
]
ObjectiveOption = Annotated[
    Objective,
    typer.Option(
        help="latency: a result that is not measurably faster is not written. size: it may be as slow as it is.",
        rich_help_panel=_GATES,
    ),
]


GivenBudgets: TypeAlias = Mapping[str, Budget]


def given_budgets(
    rank: int | None,
    alpha: float | None,
    energy: float | None,
    keep_params: float | None,
    keep_bytes: float | None,
    keep_macs: float | None,
    speedup: float | None,
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
    if keep_bytes is not None:
        found["--keep-bytes"] = KeepBytes(keep_bytes)
    if keep_macs is not None:
        found["--keep-macs"] = KeepMacs(keep_macs)
    if speedup is not None:
        found["--speedup"] = Speedup(speedup)
    return found


def budget_and_gates(
    given: GivenBudgets,
    *,
    max_error: float | None,
    max_drop: float | None,
    min_sqnr: float | None,
    min_top1: float | None,
) -> tuple[Budget, Gates]:
    """Settle the budget: the one that was given; else ``--max-drop``, else ``--max-error``.

    Of the last two, those that aren't the budget are gates.

    Raises
    ------
    UsageError
        If two budgets were given.
    """
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)}: expected one budget, drop {'all but one' if len(given) > 2 else 'one'}"
        )
    if given:
        budget = next(iter(given.values()))
    elif max_drop is not None:
        budget, max_drop = MaxDrop(max_drop), None
    else:
        budget, max_error = MaxError(DEFAULT_MAX_ERROR if max_error is None else max_error), None
    return budget, Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1, max_drop=max_drop)
