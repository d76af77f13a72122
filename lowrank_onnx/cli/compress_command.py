"""``lowrank-onnx compress``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer as typer

from lowrank_onnx.cli import budgets as budgets
from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli import outputs as outputs
from lowrank_onnx.cli.config_file import ConfigFileOption as ConfigFileOption
from lowrank_onnx.cli.config_file import DumpConfigOption as DumpConfigOption
from lowrank_onnx.cli.config_file import dump_options
from lowrank_onnx.cli.publish import is_standard_output, publish
from lowrank_onnx.cli.terminal import EXIT_DONE, EXIT_FAILED, reporting_errors, say_error, showing_progress
from lowrank_onnx.config import FORM_NAMES, OP_TYPES, Config, Speedup
from lowrank_onnx.provider import parse_provider_options

if TYPE_CHECKING:
    from lowrank_onnx.results import CompressionResult


@reporting_errors
def compress(
    context: typer.Context,
    model: options.ModelArgument,
    rank: budgets.RankOption = None,
    alpha: budgets.AlphaOption = None,
    energy: budgets.EnergyOption = None,
    keep_params: budgets.KeepParamsOption = None,
    keep_bytes: budgets.KeepBytesOption = None,
    keep_macs: budgets.KeepMacsOption = None,
    speedup: budgets.SpeedupOption = None,
    max_error: budgets.MaxErrorOption = None,
    max_drop: budgets.MaxDropOption = None,
    min_sqnr: budgets.MinSqnrOption = None,
    min_top1: budgets.MinTop1Option = None,
    objective: budgets.ObjectiveOption = options.DEFAULTS.objective,
    calib: options.CalibOption = None,
    logits: options.LogitsOption = None,
    metric: options.MetricOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    provider_option: options.ProviderOptionOption = None,
    one_session: options.OneSessionOption = options.DEFAULTS.one_session,
    whiten: options.WhitenOption = options.DEFAULTS.whiten,
    effort: options.EffortOption = options.DEFAULTS.effort,
    sensitivity: options.SensitivityOption = options.DEFAULTS.sensitivity,
    refine: options.RefineOption = options.DEFAULTS.refine,
    no_validate: options.NoValidateOption = False,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    site: options.SiteOption = None,
    op_types: options.OpTypesOption = None,
    forms: options.FormsOption = None,
    fix_overridable: options.FixOverridableOption = options.DEFAULTS.fix_overridable,
    method: options.MethodOption = options.DEFAULTS.method,
    power_iterations: options.PowerIterationsOption = options.DEFAULTS.power_iterations,
    oversampling: options.OversamplingOption = options.DEFAULTS.oversampling,
    rank_multiple: options.RankMultipleOption = options.DEFAULTS.rank_multiple,
    allow_larger: options.AllowLargerOption = options.DEFAULTS.allow_larger,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    output: outputs.OutputOption = None,
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
    """Factorize the weights of a model, prove what that did, and write the result if it is worth it."""
    given = budgets.given_budgets(rank, alpha, energy, keep_params, keep_bytes, keep_macs, speedup)
    budget, gates = budgets.budget_and_gates(
        given, max_error=max_error, max_drop=max_drop, min_sqnr=min_sqnr, min_top1=min_top1
    )
    config = Config(
        budget=budget,
        objective=objective,
        method=method,
        power_iterations=power_iterations,
        oversampling=oversampling,
        seed=seed,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        overrides=tuple(site or ()),
        op_types=checks.split_names(op_types, OP_TYPES),
        forms=checks.split_names(forms, FORM_NAMES),
        fix_overridable=fix_overridable,
        whiten=whiten,
        effort=effort,
        sensitivity=sensitivity,
        refine=refine,
        rank_multiple=rank_multiple,
        allow_larger=allow_larger,
        device=device,
        provider=provider,
        provider_options=parse_provider_options(provider_option or ()),
        one_session=one_session,
        logits=tuple(logits or ()),
        validate=not no_validate,
        gates=gates,
        metric=metric,
    )
    dump_options(context, dump_config)
    target = output or checks.default_output(model)
    checks.check_output(target, model, force=force)
    checks.check_json(json, (model, target, calib))
    checks.check_html(html, (model, target, calib, json))
    checks.check_feeds("--calib", calib)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.compress_text import compress_report
    from lowrank_onnx.report.json_report import compress_document

    with showing_progress(quiet=quiet) as progress:
        result = pipeline.compress(
            model, config, feeds=calib, output=target, force=force, cache=cache, progress=progress
        )
    code = compression_code(result)
    if html is not None:
        from lowrank_onnx.report.html import compress_page, write_page

        write_page(compress_page(result, context.obj or ()), html)
    publish(compress_document(result), json, None if quiet else compress_report(result, verbose=verbose))
    if code != EXIT_DONE and (quiet or is_standard_output(json)):
        say_error(result.message)
    return code


def compression_code(result: CompressionResult) -> int:
    """The exit code of a compression: done also where an earlier run has left nothing to do."""
    asked_for_speed = isinstance(result.config.budget, Speedup)  # which "nothing is left" doesn't give
    nothing_left = result.status == "unchanged" and result.already_compressed and not asked_for_speed
    return EXIT_DONE if result.status == "written" or nothing_left else EXIT_FAILED
