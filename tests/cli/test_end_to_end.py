"""The command line with the whole pipeline behind it, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lowrank_onnx.cli import main
from lowrank_onnx.report.schema import report_schema
from tests.report.rendering import widest
from tests.report.schema_check import problems
from tests.tiny_model import write_classifier

SCHEMA: dict[str, Any] = report_schema()
SIZE = ["--objective", "size"]  # a model this small can't be timed reliably


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    return write_classifier(tmp_path)


def _report(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    assert problems(document, SCHEMA, SCHEMA) == []
    return document


def _run(model: Path, feeds: Path) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(feeds) as arrays:
        outputs: np.ndarray[Any, Any] = session.run(None, {"x": arrays["x"]})[0]
    return outputs


def test_compress_then_validate(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, feeds = files
    before = model.read_bytes()
    flags = ["--calib", "feeds.npz", "--rank", "32", "--json", "report.json", *SIZE]
    assert main(["compress", "model.onnx", *flags]) == 0
    out = capsys.readouterr().out
    assert widest(out) <= 80
    small = model.parent / "model.lowrank.onnx"
    onnx.checker.check_model(small, full_check=True)
    assert model.read_bytes() == before
    assert small.stat().st_size < model.stat().st_size
    document = _report(model.parent / "report.json")
    assert document["status"] == "written"
    assert [site["rank"] for site in document["sites"] if site["name"] == "fc0"] == [32]
    assert document["after"]["file_bytes"] == small.stat().st_size
    # the figures of the report are those of the files
    original, compressed = _run(model, feeds), _run(small, feeds)
    error = float(np.linalg.norm(compressed - original) / np.linalg.norm(original))
    assert document["verdict"]["relative_error"] == pytest.approx(error, rel=1e-3)

    assert main(["validate", "model.onnx", "model.lowrank.onnx", "--data", "feeds.npz", "--json", "v.json"]) == 0
    assert _report(model.parent / "v.json")["verdict"]["relative_error"] == pytest.approx(error, rel=1e-3)
    gate = ["--max-error", f"{error / 2}"]
    assert main(["validate", "model.onnx", "model.lowrank.onnx", "--data", "feeds.npz", *gate, "--quiet"]) == 1
    assert main(["compress", "model.onnx"]) == 2  # the output exists


def test_the_same_input_gives_the_same_bytes(files: tuple[Path, Path]) -> None:
    flags = ["--rank", "32", "--no-validate", "--quiet"]
    assert main(["compress", "model.onnx", "-o", "a.onnx", *flags]) == 0
    assert main(["compress", "model.onnx", "-o", "b.onnx", *flags]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_without_validation_the_report_says_so(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "model.onnx", "--rank", "32", "--no-validate", "--json", "r.json"]) == 0
    assert "not validated (--no-validate)" in capsys.readouterr().out
    document = _report(Path("r.json"))
    assert document["verdict"] is None
    assert document["config"]["validate"] is False


def test_a_gate_that_fails_writes_nothing(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--calib", "feeds.npz", "--rank", "4", "--min-sqnr", "200", *SIZE]
    assert main(["compress", "model.onnx", *flags]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not written: ")
    assert sorted(os.listdir()) == ["feeds.npz", "model.onnx"]


def test_synthetic_feeds_are_called_that(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "model.onnx", "--rank", "32", "--json", "r.json", *SIZE]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "outputs against the original, on 8 synthetic feeds (seed 0)" in out
    assert out.count("synthetic feed") >= 3
    assert _report(Path("r.json"))["verdict"]["synthetic"] is True


def test_inspect(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model.onnx", "--json", "r.json"]) == 0
    out = capsys.readouterr().out
    assert widest(out) <= 80
    document = _report(Path("r.json"))
    assert [(site["name"], site["in_features"], site["out_features"]) for site in document["sites"]] == [
        ("fc0", 128, 256),
        ("fc1", 256, 10),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (bytes(range(7, 250)) * 9, "no ONNX model"),
        ("truncated", "cut off"),
    ],
)
def test_a_model_that_can_not_be_read(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], content: bytes | str | None, said: str
) -> None:
    bad = Path("bad.onnx")
    if content is not None:
        bad.write_bytes(files[0].read_bytes()[:5000] if isinstance(content, str) else content)
    before = sorted(os.listdir())
    for command in (["compress", "bad.onnx"], ["inspect", "bad.onnx"], ["validate", "bad.onnx", "model.onnx"]):
        assert main(command) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert said in err
        assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros((4, 128), np.float32)}, "'x'"),
        ({"x": np.zeros((4, 127), np.float32)}, "(4, 127)"),
        ({"x": np.zeros((4, 128), np.uint8)}, "uint8"),
        ({"x": np.full((4, 128), np.nan, np.float32)}, "NaN"),
        ({"x": np.array([{}], object)}, "bad.npz"),
        (None, "bad.npz"),
    ],
)
def test_feeds_that_do_not_fit(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arrays: dict[str, Any] | None, said: str
) -> None:
    if arrays is None:
        Path("bad.npz").write_bytes(b"no archive")
    else:
        np.savez("bad.npz", **arrays)
    before = sorted(os.listdir())
    assert main(["compress", "model.onnx", "--calib", "bad.npz", "--rank", "8"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_an_unknown_provider(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "model.onnx", "--provider", "magic", "--rank", "8"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "'magic'" in err
    assert "CPUExecutionProvider" in err
    assert sorted(os.listdir()) == ["feeds.npz", "model.onnx"]


def test_logits_are_named_on_the_command_line_and_in_a_file(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "model.onnx", "--calib", "feeds.npz", "--rank", "4", "--logits", "y", *SIZE]) == 0
    assert "y (as logits)" in capsys.readouterr().out
    small = "model.lowrank.onnx"
    flags = ["--data", "feeds.npz", "--json", "report.json", "--quiet"]
    errors = []
    for named in ([], ["--logits", "y"]):
        assert main(["validate", "model.onnx", small, *flags, *named]) == 0
        (output,) = _report(files[0].parent / "report.json")["verdict"]["outputs"]
        assert output["logits"] is bool(named)
        errors.append(output["relative_l2"])
    assert errors[0] != errors[1]
    Path("options.toml").write_text('logits = ["y"]\nkeep-params = "0.9,0.5"\nobjective = "size"\n')
    swept = ["sweep", "model.onnx", "--calib", "feeds.npz", "--config", "options.toml", "--json", "report.json"]
    assert main([*swept, "--quiet"]) == 0
    points = _report(files[0].parent / "report.json")["points"]
    assert [point["result"]["config"]["logits"] for point in points] == [["y"], ["y"]]
    verdicts = [point["result"]["verdict"] for point in points if point["result"]["verdict"] is not None]
    assert all(output["logits"] for verdict in verdicts for output in verdict["outputs"])
    capsys.readouterr()
    for command in (["compress", "model.onnx", "--force", *SIZE], ["validate", "model.onnx", small]):
        assert main([*command, "--logits", "scores"]) == 2
        assert "--logits scores: no output has that name: expected some of y" in capsys.readouterr().err


def test_nothing_selected_is_nothing_to_compress(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "model.onnx", "--include", "nothing*", "--rank", "8"]) == 1
    assert "nothing to compress: " in capsys.readouterr().out
    assert sorted(os.listdir()) == ["feeds.npz", "model.onnx"]


def test_a_second_run_finds_nothing_left(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rank", "32", "--no-validate", "--quiet"]
    assert main(["compress", "model.onnx", "-o", "once.onnx", *flags]) == 0
    assert main(["compress", "once.onnx", "-o", "twice.onnx", "--json", "r.json", *flags]) == 0
    assert capsys.readouterr() == ("", "")
    document = _report(Path("r.json"))
    assert (document["status"], document["already_compressed"]) == ("unchanged", True)
    assert not Path("twice.onnx").exists()


def test_as_a_program(files: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "lowrank_onnx", "compress", "model.onnx", "--rank", "32", "--no-validate"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, "--json", "-"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"] == "written"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --output model.lowrank.onnx: exists already")


METRIC = """
import numpy as np

samples = np.random.default_rng(3).standard_normal((400, 128)).astype(np.float32)
labels = []

def correct(predict):
    classes = predict({"x": samples})["y"].argmax(axis=1)
    if not labels:  # the first model that is measured is the original
        labels.append(classes)
    return classes == labels[0]
"""


def test_a_metric_in_a_file_decides_what_is_kept(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.py").write_text(METRIC)
    flags = ["--max-drop", "0.04", "--metric", "metrics.py:correct", "--json", "report.json", *SIZE]
    assert main(["compress", "model.onnx", "--calib", "feeds.npz", *flags]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "metric metrics.py:correct: 1.000 -> " in out
    assert "for data drawn like them: drop at most 0.0" in out
    found = _report(Path("report.json"))
    assert found["config"]["budget"] == {"flag": "--max-drop", "value": 0.04}
    assert found["config"]["metric"] == {"name": "metrics.py:correct", "higher_is_better": True}
    assert 0.0 < found["verdict"]["metric"]["drop_bound"] <= 0.04
    assert [row["asked"] for row in found["reached"] if row["figure"] == "drop of the metric"] == [0.04]


def test_a_metric_that_fails_is_one_line(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.py").write_text("def broken(predict):\n    return predict({})['z']\n")
    flags = ["--max-drop", "0.04", "--metric", "metrics.py:broken", *SIZE]
    assert main(["compress", "model.onnx", "--calib", "feeds.npz", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: metric metrics.py:broken failed: ModelError: ")
    assert error.count("\n") == 1


def test_what_ran_where_is_in_the_report(files: tuple[Path, Path]) -> None:
    flags = ["--rank", "32", "--json", "report.json", "--quiet", *SIZE]
    assert main(["compress", "model.onnx", *flags]) == 0
    [placed] = _report(Path("report.json"))["verdict"]["nodes"]
    assert placed["provider"] == "CPUExecutionProvider"
    # Gemm, MatMul, Relu, Flatten and Softmax; each factorized weight is one more.
    assert (placed["original"], placed["candidate"]) == (5, 6)


CUDA_12 = "'onnxruntime-gpu[cuda,cudnn]<1.27' 'cupy-cuda12x[ctk]'"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--provider", "cuda"],
            f"for CUDAExecutionProvider, in place of onnxruntime, pip install {CUDA_12}",
        ),
        (["--provider", "azure"], "it can't run every node of the model, and onnxruntime would run the others on the"),
        (["--provider-option", "device_id=1"], "--provider-option device_id: CPUExecutionProvider has no such option"),
        (["--provider-option", "device_id"], "expected NAME=VALUE"),
        (["--provider-option", "a=1", "--provider-option", "a=2"], "--provider-option a: is given 2 times"),
    ],
)
@pytest.mark.parametrize("command", ["compress --rank 8", "sweep --keep-params 0.6", "inspect", "validate model.onnx"])
def test_a_provider_that_is_not_to_be_had_is_an_error(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], command: str, flags: list[str], message: str
) -> None:
    providers = onnxruntime.get_available_providers()
    if flags[1] == "cuda" and "CUDAExecutionProvider" in providers:
        pytest.skip("this onnxruntime has CUDA")
    if flags[1] == "azure" and "AzureExecutionProvider" not in providers:
        pytest.skip("needs a provider that is available and takes no nodes")
    name, *rest = command.split()
    assert main([name, "model.onnx", *rest, "--data" if name == "validate" else "--calib", "feeds.npz", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == ["feeds.npz", "model.onnx"]


def test_options_of_a_provider_from_a_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.toml").write_text("rank = 8\n[provider-option]\ndevice_id = 1\n")
    assert main(["compress", "model.onnx", "--config", "o.toml", "--dump-config", "d.toml", *SIZE]) == 2
    assert "--provider-option device_id: CPUExecutionProvider has no such option" in capsys.readouterr().err
    assert 'provider-option = [\n    "device_id=1",\n]' in Path("d.toml").read_text()
    Path("o.toml").write_text("[provider-option]\ndevice_id = [1]\n")
    assert main(["compress", "model.onnx", "--config", "o.toml"]) == 2
    assert "provider-option: device_id is a list: expected a string or a number" in capsys.readouterr().err
