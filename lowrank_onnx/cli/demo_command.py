"""``lowrank-onnx demo``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli import options as options
from lowrank_onnx.cli import outputs as outputs
from lowrank_onnx.cli.compress_command import compression_code
from lowrank_onnx.cli.publish import is_standard_output, publish
from lowrank_onnx.cli.terminal import EXIT_DONE, EXIT_FAILED, reporting_errors, say_error, showing_progress


@reporting_errors
def demo(
    models: outputs.DemoModelsOption = None,
    out: outputs.DemoOutOption = None,
    seed: options.SeedOption = options.DEFAULTS.seed,
    json: outputs.JsonOption = None,
    quiet: outputs.QuietOption = False,
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
    publish(demo_document(rows), json, None if quiet else demo_report(rows, kept=out is not None))
    failed = [row for row in rows if compression_code(row.result) != EXIT_DONE]
    if quiet or is_standard_output(json):
        for row in failed:
            say_error(f"{row.model}: {row.result.message}")
    return EXIT_FAILED if failed else EXIT_DONE
