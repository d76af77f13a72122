"""``lowrank-onnx validate``."""

from __future__ import annotations

import typer as typer

from lowrank_onnx.cli import budgets as budgets
from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli import outputs as outputs
from lowrank_onnx.cli.publish import is_standard_output, publish
from lowrank_onnx.cli.terminal import EXIT_DONE, EXIT_FAILED, reporting_errors, say_error, showing_progress
from lowrank_onnx.config import Config, Gates
from lowrank_onnx.provider import parse_provider_options


@reporting_errors
def validate(
    context: typer.Context,
    original: options.OriginalArgument,
    candidate: options.CandidateArgument,
    data: options.DataOption = None,
    min_sqnr: budgets.MinSqnrOption = None,
    max_error: budgets.MaxErrorGateOption = None,
    min_top1: budgets.MinTop1Option = None,
    logits: options.LogitsOption = None,
    metric: options.MetricOption = None,
    max_drop: budgets.MaxDropGateOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    provider_option: options.ProviderOptionOption = None,
    one_session: options.OneSessionOption = options.DEFAULTS.one_session,
    seed: options.SeedOption = options.DEFAULTS.seed,
    json: outputs.JsonOption = None,
    quiet: outputs.QuietOption = False,
    debug: outputs.DebugOption = None,
) -> int:
    """Compare two models in onnxruntime: outputs and latency, with a verdict on the outputs."""
    gates = Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1, max_drop=max_drop)
    provider_options = parse_provider_options(provider_option or ())
    config = Config(
        provider=provider,
        provider_options=provider_options,
        one_session=one_session,
        logits=tuple(logits or ()),
        seed=seed,
        gates=gates,
        metric=metric,
    )
    checks.check_json(json, (original, candidate, data))
    checks.check_feeds("--data", data)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.json_report import validate_document
    from lowrank_onnx.report.verdict_text import validate_report

    with showing_progress(quiet=quiet) as progress:
        verdict = pipeline.validate(original, candidate, feeds=data, config=config, progress=progress)
    names = str(original), str(candidate)
    publish(validate_document(*names, verdict), json, None if quiet else validate_report(*names, verdict))
    if not verdict.passed and (quiet or is_standard_output(json)):
        say_error("; ".join(verdict.failures) or "nothing was compared")
    return EXIT_DONE if verdict.passed else EXIT_FAILED
