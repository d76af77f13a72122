from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from lowrank_onnx.cli.checks import check_html, check_json, check_output, default_output, split_names
from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.errors import MissingDependencyError, OutputError


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("model.onnx", "model.lowrank.onnx"),
        ("dir.d/a.b.onnx", "dir.d/a.b.lowrank.onnx"),
        ("bare", "bare.lowrank.onnx"),
        ("x.lowrank.onnx", "x.lowrank.lowrank.onnx"),
    ],
)
def test_default_output(model: str, output: str) -> None:
    assert default_output(Path(model)) == Path(output)


def test_names() -> None:
    assert split_names(None, OP_TYPES) == OP_TYPES
    assert split_names(["Conv, MatMul", "Gemm", "Conv"], OP_TYPES) == ("Conv", "MatMul", "Gemm")
    assert split_names([","], OP_TYPES) == ()


def test_names_in_messages_are_escaped(tmp_path: Path) -> None:
    hostile = tmp_path / "evil\x1b[2J.onnx"
    hostile.write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        check_output(hostile, tmp_path / "model.onnx", force=False)
    assert r"evil\x1b[2J.onnx: exists already" in str(caught.value)


def test_a_directory_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def deny(path: object, mode: int) -> bool:
        asked.append(mode)
        return False

    monkeypatch.setattr(os, "access", deny)
    with pytest.raises(OutputError, match="can't be written, choose another directory"):
        check_output(tmp_path / "a.onnx", tmp_path / "model.onnx", force=True)
    assert asked == [os.W_OK | os.X_OK]


def test_json_on_standard_output_needs_no_directory() -> None:
    check_json(Path("-"), (Path("-"),))
    check_json(None, ())


def test_json_may_replace_an_older_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    check_json(report, (None, tmp_path / "model.onnx"))


def test_html_is_refused_where_json_would_be_and_where_nothing_can_draw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    check_html(page, (tmp_path / "report.json", None))
    check_html(None, ())
    with pytest.raises(OutputError, match=r"is a directory, give a file name such as .*/report\.html"):
        check_html(tmp_path, ())
    with pytest.raises(OutputError, match=r"--html .* is one of the command's other files"):
        check_html(page, (page,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs jinja2 and matplotlib: pip install .*\[html\]"):
        check_html(page, ())
