"""``lowrank-onnx sweep``."""

from __future__ import annotations

import typer as typer

from lowrank_onnx.cli import budgets as budgets
from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli import outputs as outputs
from lowrank_onnx.cli import points as points
from lowrank_onnx.cli.config_file import ConfigFileOption as ConfigFileOption
from lowrank_onnx.cli.config_file import DumpConfigOption as DumpConfigOption
from lowrank_onnx.cli.config_file import dump_options
from lowrank_onnx.cli.publish import is_standard_output, publish
from lowrank_onnx.cli.terminal import EXIT_DONE, EXIT_FAILED, reporting_errors, say_error, showing_progress
from lowrank_onnx.config import FORM_NAMES, OP_TYPES, Config, Gates
from lowrank_onnx.provider import parse_provider_options


@reporting_errors
def sweep(
    context: typer.Context,
    model: options.ModelArgument,
    keep_params: points.SweepParamsOption = None,
    keep_macs: points.SweepMacsOption = None,
    speedup: points.SweepSpeedupOption = None,
    pick: points.PickOption = None,
    min_sqnr: budgets.MinSqnrOption = None,
    max_error: budgets.MaxErrorGateOption = None,
    min_top1: budgets.MinTop1Option = None,
    objective: budgets.ObjectiveOption = options.DEFAULTS.objective,
    calib: options.CalibOption = None,
    logits: options.LogitsOption = None,
    metric: options.MetricOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    provider_option: options.ProviderOptionOption = None,
    one_session: options.OneSessionOption = options.DEFAULTS.one_session,
    effort: options.EffortOption = options.DEFAULTS.effort,
    sensitivity: options.SensitivityOption = options.DEFAULTS.sensitivity,
    refine: options.RefineOption = options.DEFAULTS.refine,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    site: options.SiteOption = None,
    op_types: options.OpTypesOption = None,
    forms: options.FormsOption = None,
    fix_overridable: options.FixOverridableOption = options.DEFAULTS.fix_overridable,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    output: outputs.SweepOutputOption = None,
    force: outputs.ForceOption = False,
    cache: outputs.CacheOption = None,
    json: outputs.JsonOption = None,
    html: outputs.HtmlOption = None,
    quiet: outputs.QuietOption = False,
    verbose: outputs.VerboseOption = False,
    config_file: ConfigFileOption = None,
    dump_config: DumpConfigOption = None,
    debug: outputs.DebugOption = None,
) -> int:
    """Compress at several budgets from one calibration, show the trade-off, and write the point that you pick."""
    tried = points.sweep_points(keep_params, keep_macs, speedup)
    config = Config(
        budget=tried[0],
        gates=Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1),
        objective=objective,
        effort=effort,
        sensitivity=sensitivity,
        refine=refine,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        overrides=tuple(site or ()),
        op_types=checks.split_names(op_types, OP_TYPES),
        forms=checks.split_names(forms, FORM_NAMES),
        fix_overridable=fix_overridable,
        seed=seed,
        device=device,
        provider=provider,
        provider_options=parse_provider_options(provider_option or ()),
        one_session=one_session,
        logits=tuple(logits or ()),
        metric=metric,
    )
    dump_options(context, dump_config)
    if output is not None:
        checks.check_output(output, model, force=force)
    checks.check_json(json, (model, output, calib))
    checks.check_html(html, (model, output, calib, json))
    checks.check_feeds("--calib", calib)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.json_report import sweep_document
    from lowrank_onnx.report.sweep_text import sweep_report
    from lowrank_onnx.sweep import parse_pick
    from lowrank_onnx.sweep import sweep as run_sweep

    rule = None if pick is None else parse_pick(pick)
    with showing_progress(quiet=quiet) as progress:
        result = run_sweep(
            model,
            tried,
            config,
            pipeline.compress,
            feeds=calib,
            pick=rule,
            output=output,
            force=force,
            cache=cache,
            progress=progress,
        )
    if html is not None:
        from lowrank_onnx.report.html import sweep_page, write_page

        write_page(sweep_page(result, context.obj or ()), html)
    publish(sweep_document(result), json, None if quiet else sweep_report(result, verbose=verbose))
    failed = rule is not None and result.picked is None
    if failed and (quiet or is_standard_output(json)):
        say_error(result.message)
    return EXIT_FAILED if failed else EXIT_DONE
