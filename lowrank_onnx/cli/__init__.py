"""The command line: the only place that prints or exits.

Exit codes: 0 done (also when there was nothing left to compress); 1 the result was rejected, or there is nothing to
compress; 2 wrong usage; 3 the model can't be read; 70 a bug; 130 interrupted; 141 the reader of the output went away.

Numerical and model libraries are imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowrank_onnx import __version__
from lowrank_onnx.cli import budgets as budgets
from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli.config_file import ConfigFileOption as ConfigFileOption
from lowrank_onnx.cli.config_file import DumpConfigOption as DumpConfigOption
from lowrank_onnx.cli.config_file import dump_options
from lowrank_onnx.cli.terminal import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    error_exit_code,
    output_console,
    prepare_streams,
    reporting_errors,
    say_error,
    showing_progress,
)
from lowrank_onnx.config import FORM_NAMES, OP_TYPES, Config, Gates, Speedup

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lowrank_onnx.results import CompressionResult

app = typer.Typer(
    name="lowrank-onnx",
    help="Makes exported ONNX models smaller and faster by low-rank factorization, and proves it.",
    epilog="Exit codes: 0 done, 1 rejected or nothing to compress, 2 wrong usage, 3 the model can't be read.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lowrank-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
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
    metric: options.MetricOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    whiten: options.WhitenOption = options.DEFAULTS.whiten,
    effort: options.EffortOption = options.DEFAULTS.effort,
    sensitivity: options.SensitivityOption = options.DEFAULTS.sensitivity,
    refine: options.RefineOption = options.DEFAULTS.refine,
    no_validate: options.NoValidateOption = False,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    op_types: options.OpTypesOption = None,
    forms: options.FormsOption = None,
    method: options.MethodOption = options.DEFAULTS.method,
    power_iterations: options.PowerIterationsOption = options.DEFAULTS.power_iterations,
    oversampling: options.OversamplingOption = options.DEFAULTS.oversampling,
    rank_multiple: options.RankMultipleOption = options.DEFAULTS.rank_multiple,
    allow_larger: options.AllowLargerOption = options.DEFAULTS.allow_larger,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    output: options.OutputOption = None,
    force: options.ForceOption = False,
    cache: options.CacheOption = None,
    json: options.JsonOption = None,
    html: options.HtmlOption = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    config_file: ConfigFileOption = None,
    dump_config: DumpConfigOption = None,
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
        op_types=checks.split_names(op_types, OP_TYPES),
        forms=checks.split_names(forms, FORM_NAMES),
        whiten=whiten,
        effort=effort,
        sensitivity=sensitivity,
        refine=refine,
        rank_multiple=rank_multiple,
        allow_larger=allow_larger,
        device=device,
        provider=provider,
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
    code = _compression_code(result)
    if html is not None:
        from lowrank_onnx.report.html import compress_page, write_page

        write_page(compress_page(result, context.obj or ()), html)
    _publish(compress_document(result), json, None if quiet else compress_report(result, verbose=verbose))
    if code != EXIT_DONE and (quiet or _is_standard_output(json)):
        say_error(result.message)
    return code


def _compression_code(result: CompressionResult) -> int:
    asked_for_speed = isinstance(result.config.budget, Speedup)  # which "nothing is left" doesn't give
    nothing_left = result.status == "unchanged" and result.already_compressed and not asked_for_speed
    return EXIT_DONE if result.status == "written" or nothing_left else EXIT_FAILED


@app.command()
@reporting_errors
def sweep(
    context: typer.Context,
    model: options.ModelArgument,
    keep_params: budgets.SweepParamsOption = None,
    keep_macs: budgets.SweepMacsOption = None,
    speedup: budgets.SweepSpeedupOption = None,
    pick: budgets.PickOption = None,
    min_sqnr: budgets.MinSqnrOption = None,
    max_error: budgets.MaxErrorGateOption = None,
    min_top1: budgets.MinTop1Option = None,
    objective: budgets.ObjectiveOption = options.DEFAULTS.objective,
    calib: options.CalibOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    sensitivity: options.SensitivityOption = options.DEFAULTS.sensitivity,
    refine: options.RefineOption = options.DEFAULTS.refine,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    op_types: options.OpTypesOption = None,
    forms: options.FormsOption = None,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    output: options.SweepOutputOption = None,
    force: options.ForceOption = False,
    cache: options.CacheOption = None,
    json: options.JsonOption = None,
    html: options.HtmlOption = None,
    quiet: options.QuietOption = False,
    config_file: ConfigFileOption = None,
    dump_config: DumpConfigOption = None,
) -> int:
    """Compress at several budgets from one calibration, show the trade-off, and write the point that you pick."""
    points = budgets.sweep_points(keep_params, keep_macs, speedup)
    config = Config(
        budget=points[0],
        gates=Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1),
        objective=objective,
        sensitivity=sensitivity,
        refine=refine,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        op_types=checks.split_names(op_types, OP_TYPES),
        forms=checks.split_names(forms, FORM_NAMES),
        seed=seed,
        device=device,
        provider=provider,
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
            points,
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
    _publish(sweep_document(result), json, None if quiet else sweep_report(result))
    failed = rule is not None and result.picked is None
    if failed and (quiet or _is_standard_output(json)):
        say_error(result.message)
    return EXIT_FAILED if failed else EXIT_DONE


@app.command()
@reporting_errors
def inspect(
    model: options.ModelArgument,
    calib: options.CalibOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    op_types: options.OpTypesOption = None,
    seed: options.SeedOption = options.DEFAULTS.seed,
    device: options.DeviceOption = options.DEFAULTS.device,
    json: options.JsonOption = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> int:
    """List every weight that could be factorized with its sizes and spectrum, and every other node with the reason."""
    config = Config(
        seed=seed,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        op_types=checks.split_names(op_types, OP_TYPES),
        device=device,
        provider=provider,
    )
    checks.check_json(json, (model, calib))
    checks.check_feeds("--calib", calib)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.inspect_text import inspect_report
    from lowrank_onnx.report.json_report import inspect_document

    with showing_progress(quiet=quiet) as progress:
        result = pipeline.inspect(model, config, feeds=calib, progress=progress)
    _publish(inspect_document(result), json, None if quiet else inspect_report(result, verbose=verbose))
    return EXIT_DONE


@app.command()
@reporting_errors
def validate(
    original: options.OriginalArgument,
    candidate: options.CandidateArgument,
    data: options.DataOption = None,
    min_sqnr: budgets.MinSqnrOption = None,
    max_error: budgets.MaxErrorGateOption = None,
    min_top1: budgets.MinTop1Option = None,
    metric: options.MetricOption = None,
    max_drop: budgets.MaxDropGateOption = None,
    provider: options.ProviderOption = options.DEFAULTS.provider,
    seed: options.SeedOption = options.DEFAULTS.seed,
    json: options.JsonOption = None,
    quiet: options.QuietOption = False,
) -> int:
    """Compare two models in onnxruntime: outputs and latency, with a verdict on the outputs."""
    gates = Gates(min_sqnr_db=min_sqnr, max_error=max_error, min_top1=min_top1, max_drop=max_drop)
    config = Config(provider=provider, seed=seed, gates=gates, metric=metric)
    checks.check_json(json, (original, candidate, data))
    checks.check_feeds("--data", data)

    from lowrank_onnx import pipeline
    from lowrank_onnx.report.json_report import validate_document
    from lowrank_onnx.report.verdict_text import validate_report

    with showing_progress(quiet=quiet) as progress:
        verdict = pipeline.validate(original, candidate, feeds=data, config=config, progress=progress)
    names = str(original), str(candidate)
    _publish(validate_document(*names, verdict), json, None if quiet else validate_report(*names, verdict))
    if not verdict.passed and (quiet or _is_standard_output(json)):
        say_error("; ".join(verdict.failures) or "nothing was compared")
    return EXIT_DONE if verdict.passed else EXIT_FAILED


@app.command()
@reporting_errors
def demo(
    models: options.DemoModelsOption = None,
    out: options.DemoOutOption = None,
    seed: options.SeedOption = options.DEFAULTS.seed,
    json: options.JsonOption = None,
    quiet: options.QuietOption = False,
) -> int:
    """Compress the two shipped Fashion-MNIST models, and show accuracy, size, MACs and latency before and after."""
    checks.check_json(json, ())

    from lowrank_onnx import pipeline
    from lowrank_onnx.demo import find_demo_files, prepare_directory, run_demo
    from lowrank_onnx.report.demo_text import demo_report
    from lowrank_onnx.report.json_report import demo_document

    files = find_demo_files(models)
    with (
        tempfile.TemporaryDirectory(prefix="lowrank-onnx-demo-") as temporary,
        showing_progress(quiet=quiet) as progress,
    ):
        target = prepare_directory(out) if out is not None else Path(temporary)
        rows = run_demo(files, target, pipeline.compress, seed=seed, progress=progress)
    _publish(demo_document(rows), json, None if quiet else demo_report(rows, kept=out is not None))
    failed = [row for row in rows if _compression_code(row.result) != EXIT_DONE]
    if quiet or _is_standard_output(json):
        for row in failed:
            say_error(f"{row.model}: {row.result.message}")
    return EXIT_FAILED if failed else EXIT_DONE


def _is_standard_output(json: Path | None) -> bool:
    return json is not None and str(json) == "-"


def _publish(document: Mapping[str, Any], json: Path | None, report: RenderableType | None) -> None:
    from lowrank_onnx.report.json_report import json_text, write_json

    if _is_standard_output(json):
        print(json_text(document), end="")
        return
    if json is not None:
        write_json(document, json)
    if report is not None:
        output_console().print(report)


def _usage_exit_code(error: BaseException) -> int:
    """One line for what the parser didn't understand."""
    message = getattr(error, "format_message", error.__str__)().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else app.info.name
    say_error(f"{' '.join(message.split()).rstrip('.')}: see {command} --help")
    return EXIT_USAGE


_ClickError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of the parser's errors: click's, or that of the copy which newer versions of typer bring along."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : the arguments after the program's name; None takes those of the process.
    """
    prepare_streams()
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = command.main(
            args=arguments or ["--help"], prog_name="lowrank-onnx", standalone_mode=False, obj=tuple(arguments)
        )
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, _ClickError):
            return error_exit_code(error)
        return _usage_exit_code(error)
    if not arguments:
        return EXIT_USAGE
    return code if isinstance(code, int) else EXIT_DONE
