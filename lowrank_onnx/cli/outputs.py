"""The command line's options on what is written and shown, and what is kept between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_OUTPUT = "Output"

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
SweepOutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file to write the point that --pick names to.",
        show_default="nothing is written",
        rich_help_panel=_OUTPUT,
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep what was learned of weights and feeds there, so that a run that was killed goes on, and the next "
        "one with other budgets starts from it. It can be deleted at any time.",
        show_default="nothing is kept",
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
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report as one self-contained HTML page too, replacing FILE (needs the extra 'html').",
        rich_help_panel=_OUTPUT,
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="No report and no progress; errors only.", rich_help_panel=_OUTPUT)
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="List every site and skipped node; of a sweep, for each point.", rich_help_panel=_OUTPUT
    ),
]
DebugOption = Annotated[
    Path | None,
    typer.Option(
        "--debug",
        metavar="FILE.zip",
        help="Write what a report of a problem needs, replacing FILE: versions, options, a log, the traceback if there "
        "is one, and the graph without any values. Weights and feeds are not in it.",
        rich_help_panel=_OUTPUT,
    ),
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
