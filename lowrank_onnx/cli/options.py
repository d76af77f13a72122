"""The command line's options, in words that teach."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_onnx.cli.budgets import whole_number
from lowrank_onnx.config import FORM_NAMES, OP_TYPES, Config, Device, Method
from lowrank_onnx.effort import EffortLevel, SensitivityLevel
from lowrank_onnx.metric import Metric, load_metric
from lowrank_onnx.site_override import SiteOverride, parse_site, site_override

DEFAULTS = Config()


_FEEDS = "Feeds and validation"
_CALIBRATION = "What real feeds are used for"
_MEMORY = "Memory"
_SELECT = "Which weights"
_NUMERICS = "Factorization"


def _parse_site(value: str | Mapping[str, Any]) -> SiteOverride:
    """From a flag's text, or from a table of a configuration file."""
    return site_override(value) if isinstance(value, Mapping) else parse_site(value)


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
ProviderOptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        metavar="NAME=VALUE",
        help="An option of the provider, as onnxruntime names it, e.g. device_id=1; repeatable. In a file: a table "
        r"\[provider-option].",
        rich_help_panel=_FEEDS,
    ),
]
OneSessionOption = Annotated[
    bool | None,
    typer.Option(
        "--one-session/--two-sessions",
        help="Have one model in memory at a time: the original runs on all feeds, and its outputs wait on disk for the "
        "other's. The figures are the same; speed is measured in alternating blocks, with the models loaded again "
        "for each.",
        show_default="one where memory is short for two",
        rich_help_panel=_MEMORY,
    ),
]
MetricOption = Annotated[
    Metric | None,
    typer.Option(
        metavar="FILE.py:FUNCTION",
        help="Your own measure of a model, reported of both: a Python function that is given predict(feed) and returns "
        "a number, or for each sample whether the model is right. Higher is better unless the function has the "
        "attribute higher_is_better = False. The file is run as Python: it must be one that you trust.",
        parser=load_metric,
        rich_help_panel=_FEEDS,
    ),
]
LogitsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="The outputs with these names are logits, scores that only a softmax will read: errors are measured, "
        "planned by and judged without the level that each row has in common, which changes nothing then; repeatable.",
        rich_help_panel=_FEEDS,
    ),
]
WhitenOption = Annotated[
    bool,
    typer.Option(
        "--whiten/--no-whiten",
        help="Minimise the error of what each node computes on the feeds, not that of its weight.",
        rich_help_panel=_CALIBRATION,
    ),
]
EffortOption = Annotated[
    EffortLevel,
    typer.Option(
        help="Time for quality: how closely the weights' effects are measured, how finely a search looks, how long is "
        "timed. fast is for a first look, full for what will be shipped.",
        rich_help_panel=_CALIBRATION,
    ),
]
SensitivityOption = Annotated[
    SensitivityLevel | None,
    typer.Option(
        help="With a budget over the whole model: measure what each weight alone does to the outputs, at one rank "
        "(fast), at up to three (full), or not at all (off).",
        show_default="by --effort: off, fast, full",
        rich_help_panel=_CALIBRATION,
    ),
]
RefineOption = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Solve the factors again, layer after layer, so that each makes good what the ones before it got wrong. "
        "Kept as far as it helps on the held-out feeds.",
        show_default="by --effort: off, on, on",
        rich_help_panel=_CALIBRATION,
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
        help=f"Only these operators, with commas between them or the flag again: {', '.join(OP_TYPES)}.",
        show_default="all",
        rich_help_panel=_SELECT,
    ),
]

FixOverridableOption = Annotated[
    bool,
    typer.Option(
        "--fix-overridable",
        help="Also weights that are graph inputs with a default value; the result has no such inputs any more.",
        rich_help_panel=_SELECT,
    ),
]

FormsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FORM[,FORM]",
        help=f"Write weights only in these forms, with commas between them or the flag again: {', '.join(FORM_NAMES)}.",
        show_default="all",
        rich_help_panel=_SELECT,
    ),
]

SiteOption = Annotated[
    list[SiteOverride] | None,
    typer.Option(
        "--site",
        metavar="GLOB:SETTING,...",
        help="Settings of the weights whose name, or whose node's name, matches: rank=R, form=FORM, exclude, "
        "sensitivity=S (its damage counts S times), e.g. 'encoder.*:rank=64,form=pair'. Repeatable; later ones win, "
        r"setting by setting. In a file: \[\[site]] tables with match, rank, form, exclude, sensitivity.",
        parser=_parse_site,
        rich_help_panel=_SELECT,
    ),
]

# Factorization

MethodOption = Annotated[
    Method,
    typer.Option(
        help="auto: the cheapest solver that is optimal to 2 %. rsi: randomized subspace iteration as published "
        "(arXiv 2604.02659). rsvd: the same with q = 1. svd: exact, slow.",
        rich_help_panel=_NUMERICS,
    ),
]
PowerIterationsOption = Annotated[
    int,
    typer.Option(
        "--power-iterations",
        metavar="Q",
        help="The paper's q: more is closer to the exact SVD on slowly decaying spectra. 1 is RSVD.",
        parser=whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
OversamplingOption = Annotated[
    int,
    typer.Option(
        "--oversampling",
        metavar="P",
        help="Columns of the sketch beyond the rank, dropped at the end. 0 is the algorithm as published.",
        parser=whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
RankMultipleOption = Annotated[
    int | None,
    typer.Option(
        metavar="M",
        help="Ranks are multiples of M.",
        show_default="16 where the weights are large enough",
        parser=whole_number,
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
        parser=whole_number,
        rich_help_panel=_NUMERICS,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(help="Where to factorize. auto takes CUDA where CuPy and a GPU are there.", rich_help_panel=_NUMERICS),
]
