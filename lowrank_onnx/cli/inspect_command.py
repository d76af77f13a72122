"""``lowrank-onnx inspect``."""

from __future__ import annotations

import typer as typer

from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli import outputs as outputs
from lowrank_onnx.cli.publish import publish
from lowrank_onnx.cli.terminal import EXIT_DONE, reporting_errors, showing_progress
from lowrank_onnx.config import OP_TYPES, Config
from lowrank_onnx.provider import parse_provider_options


@reporting_errors
def inspect(
    context: typer.Context,
    model: options.ModelArgument,
    calib: options.CalibOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    provider_option: options.ProviderOptionOption = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    site: options.SiteOption = None,
    op_types: options.OpTypesOption = None,
    fix_overridable: options.FixOverridableOption = options.DEFAULTS.fix_overridable,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    json: outputs.JsonOption = None,
    quiet: outputs.QuietOption = False,
    verbose: outputs.VerboseOption = False,
    debug: outputs.DebugOption = None,
) -> int:
    """List every weight that could be factorized with its sizes and spectrum, and every other node with the reason."""
    config = Config(
        seed=seed,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        overrides=tuple(site or ()),
        op_types=checks.split_names(op_types, OP_TYPES),
        fix_overridable=fix_overridable,
        device=device,
        provider=provider,
        provider_options=parse_provider_options(provider_option or ()),
    )
    checks.check_json(json, (model, calib))
    checks.check_feeds("--calib", calib)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.inspect_text import inspect_report
    from lowrank_onnx.report.json_report import inspect_document

    with showing_progress(quiet=quiet) as progress:
        result = pipeline.inspect(model, config, feeds=calib, progress=progress)
    publish(inspect_document(result), json, None if quiet else inspect_report(result, verbose=verbose))
    return EXIT_DONE
