"""The command line's options, in words that teach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank_onnx.cli_checks import DEFAULT_MAX_ERROR
from lowrank_onnx.config import OP_TYPES, Config, Device, Method, Objective

DEFAULTS = Config()


def _whole_number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a whole number") from None


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a number") from None
    if number != number:  # NaN: every comparison with it is false, so a gate would let everything pass
        raise typer.BadParameter(f"{value!r} is not a number")
    return number


_BUDGET = "Budget: how much to compress (give one)"
_GATES = "Gates: what the result must hold, or it is not written"
_FEEDS = "Feeds and validation"
_SELECT = "Which weights"
_NUMERICS = "Factorization"
_OUTPUT = "Output"

# Arguments

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The ONNX file. It is never changed.", show_default=False)
]
OriginalArgument = Annotated[
    Path, typer.Argument(metavar="ORIGINAL", help="The ONNX file to compare with.", show_default=False)
]
CandidateArgument = Annotated[
    Path, typer.Argument(metavar="CANDIDATE", help="The ONNX file to be judged.", show_default=False)
]

# Budgets. A flag that isn't given is None.

RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank", metavar="R", help="The same rank for every weight.", parser=_whole_number, rich_help_panel=_BUDGET
    ),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="r = ceil(A * min(in, out)) for every weight. Weights where that would store more stay dense.",
        parser=_number,
        rich_help_panel=_BUDGET,
    ),
]
EnergyOption = Annotated[
    float | None,
    typer.Option(
        metavar="E",
        help="For each weight the smallest rank that keeps the share E of its squared Frobenius norm.",
        parser=_number,
        rich_help_panel=_BUDGET,
    ),
]
KeepParamsOption = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Keep the share F of the eligible weights' parameters, where they do the least damage.",
        parser=_number,
        rich_help_panel=_BUDGET,
    ),
]
KeepMacsOption = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Keep the share F of the eligible weights' multiply-accumulates in one run.",
        parser=_number,
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
        parser=_number,
        rich_help_panel=_BUDGET,
    ),
]

# Gates

MinSqnrOption = Annotated[
    float | None,
    typer.Option(
        metavar="DB", help="Least signal-to-noise ratio of any output, in dB.", parser=_number, rich_help_panel=_GATES
    ),
]
MinTop1Option = Annotated[
    float | None,
    typer.Option(
        "--min-top1",
        metavar="F",
        help="Least share of samples whose top class stays the same, from 0 to 1.",
        parser=_number,
        rich_help_panel=_GATES,
    ),
]
MaxErrorGateOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="E",
        help="Largest relative L2 error of any output.",
        parser=_number,
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

# Feeds and validation

_FEEDS_HELP = (
    "an .npz (arrays named as the model's inputs, first axis: samples), a directory of .npz, or a directory of ONNX "
    "test_data_set_*. Without it the feeds are synthetic, and every figure from them says so."
)
CalibOption = Annotated[
    Path | None,
    typer.Option(metavar="FEEDS", help=f"Inputs to run the model on: {_FEEDS_HELP}", rich_help_panel=_FEEDS),
]
DataOption = Annotated[
    Path | None,
    typer.Option(metavar="FEEDS", help=f"Inputs to run both models on: {_FEEDS_HELP}", rich_help_panel=_FEEDS),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The onnxruntime execution provider that validates and times: cpu, cuda, tensorrt or its full name. "
        "One that is absent, or hands nodes to the CPU, is an error.",
        rich_help_panel=_FEEDS,
    ),
]
NoValidateOption = Annotated[
    bool,
    typer.Option(
        "--no-validate",
        help="Write the result without running it; the report says so. Needs a budget other than --max-error.",
        rich_help_panel=_FEEDS,
    ),
]

# Which weights

IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only nodes or weights whose name matches; repeatable.", rich_help_panel=_SELECT),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="No node or weight whose name matches; repeatable, wins.", rich_help_panel=_SELECT
    ),
]
OpTypesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OP[,OP]",
        help="Only these operators: commas between them, or the flag again.",
        show_default=",".join(OP_TYPES),
        rich_help_panel=_SELECT,
    ),
]

# Factorization

MethodOption = Annotated[
    Method,
    typer.Option(
        help="rsi: randomized subspace iteration (arXiv 2604.02659). rsvd: the same with q = 1. svd: exact, slow.",
        rich_help_panel=_NUMERICS,
    ),
]
PowerIterationsOption = Annotated[
    int,
    typer.Option(
        "--power-iterations",
        metavar="Q",
        help="The paper's q: more is closer to the exact SVD on slowly decaying spectra. 1 is RSVD.",
        parser=_whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
OversamplingOption = Annotated[
    int,
    typer.Option(
        "--oversampling",
        metavar="P",
        help="Columns of the sketch beyond the rank, dropped at the end. 0 is the algorithm as published.",
        parser=_whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
RankMultipleOption = Annotated[
    int | None,
    typer.Option(
        metavar="M",
        help="Ranks are multiples of M.",
        show_default="16 where the weights are large enough",
        parser=_whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
AllowLargerOption = Annotated[
    bool,
    typer.Option(
        "--allow-larger",
        help="With --rank or --alpha: factorize also where that stores more. --alpha 1 then changes no output.",
        rich_help_panel=_NUMERICS,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Of the sketches, the synthetic feeds and the bootstrap: the same seed gives the same file.",
        parser=_whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(help="Where to factorize. auto takes CUDA where CuPy and a GPU are there.", rich_help_panel=_NUMERICS),
]

# Output

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file to write.",
        show_default="STEM.lowrank.onnx beside MODEL",
        rich_help_panel=_OUTPUT,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", "-f", help="Replace the output if it exists.", rich_help_panel=_OUTPUT)
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the report as JSON too, replacing FILE. '-' is standard output, with nothing else on it.",
        rich_help_panel=_OUTPUT,
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="No report and no progress; errors only.", rich_help_panel=_OUTPUT)
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="List every site and skipped node.", rich_help_panel=_OUTPUT)
]
DemoModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Where the shipped models lie.",
        show_default="models/ of the checkout",
        rich_help_panel=_OUTPUT,
    ),
]
DemoOutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Keep the compressed models there, replacing earlier ones.",
        show_default="they are deleted",
        rich_help_panel=_OUTPUT,
    ),
]
