"""Where a command's outcome goes: the report to the terminal, the document to a file or to standard output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_onnx.cli.debug_bundle import current_recorder
from lowrank_onnx.cli.terminal import output_console

if TYPE_CHECKING:
    from rich.console import RenderableType


def is_standard_output(json: Path | None) -> bool:
    """Whether ``--json -`` was given: then the document alone is printed."""
    return json is not None and str(json) == "-"


def publish(document: Mapping[str, Any], json: Path | None, report: RenderableType | None) -> None:
    """Write the document where ``--json`` says, and print the report unless the document is printed."""
    from lowrank_onnx.report.json_report import json_text, write_json

    recorder = current_recorder()
    if recorder is not None:
        recorder.document = document
    if is_standard_output(json):
        print(json_text(document), end="")
        return
    if json is not None:
        write_json(document, json)
    if report is not None:
        output_console().print(report)
