from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lowrank_onnx.errors import OutputError
from lowrank_onnx.report.json_report import (
    SCHEMA,
    compress_document,
    demo_document,
    json_text,
    json_value,
    validate_document,
    write_json,
)
from tests.report.samples import DEMO_ROW, OUTPUT, VERDICT, compression


def _strict(content: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(content, parse_constant=refuse)


def test_a_report_says_what_it_is_first() -> None:
    document = compress_document(compression())
    assert list(document)[:3] == ["schema", "kind", "status"]
    assert document["schema"] == SCHEMA == "lowrank-onnx/report/1"
    assert document["kind"] == "compress"


def test_the_same_result_gives_the_same_bytes() -> None:
    assert json_text(compress_document(compression())) == json_text(compress_document(compression()))


def test_figures_arrive_unrounded() -> None:
    document = _strict(json_text(compress_document(compression())))
    assert document["sites"][0]["relative_error"] == 0.0312
    assert document["config"]["budget"] == {"flag": "--keep-params", "value": 0.4}
    assert document["verdict"]["latency"]["speedup_low"] == 1.38
    assert document["verdict"]["passed"] is True
    assert document["verdict"]["latency"]["faster"] is True
    assert document["seconds"] == {"load": 0.012, "factorize": 1.5}


def test_the_model_itself_is_in_no_report() -> None:
    assert "model" not in compress_document(compression())


def test_what_json_has_no_number_for_is_a_string() -> None:
    output = replace(OUTPUT, sqnr_db=math.inf, relative_l2=math.nan, max_abs=-math.inf, top1_agreement=None)
    document = _strict(json_text(validate_document("a", "b", replace(VERDICT, outputs=(output,)))))
    shown = document["verdict"]["outputs"][0]
    assert (shown["sqnr_db"], shown["relative_l2"], shown["max_abs"]) == ("Infinity", "NaN", "-Infinity")
    assert shown["top1_agreement"] is None


def test_hostile_names_make_plain_ascii() -> None:
    hostile = "\x1b[2J\udc80\u202e\n"
    content = json_text(compress_document(compression(input=hostile, message=hostile)))
    assert content.isascii()
    assert _strict(content)["input"] == "\x1b[2J\\udc80\u202e\n"


def test_a_demo_holds_whole_compressions() -> None:
    document = _strict(json_text(demo_document((DEMO_ROW,))))
    assert document["rows"][0]["result"]["sites"][1]["groups"] == 2
    assert document["rows"][0]["accuracy_after"] == 0.933


def test_what_does_not_belong_in_a_report_is_refused() -> None:
    with pytest.raises(TypeError, match="a report can't hold a set"):
        json_value({"a": {1, 2}})


def test_writing_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_json({"a": 1}, path)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["report.json"]


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_json({}, tmp_path / "report.json")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(descriptor: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        write_json({"a": 1}, path)
    assert str(caught.value) == f"--json {path}: can't be written (No space left on device): give another path"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_missing_directory_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        write_json({}, tmp_path / "nowhere" / "report.json")


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    write_json({}, link)
    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == "{}\n"


def test_a_device_is_written_to_not_replaced() -> None:
    write_json({"a": 1}, Path(os.devnull))
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json({"a": 1}, pipe)
        assert json.loads(os.read(reader, 1000)) == {"a": 1}
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
