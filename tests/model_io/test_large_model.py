"""The benchmark of large models, on a small one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import large_model
from benchmarks.large_model import find_faults
from benchmarks.large_model_file import NOISE_SHARE, SIGNAL_RANK, plan_weights, weight_blocks, write_model
from lowrank_onnx.model_io import load_model, stage_model

_ROOT = Path(__file__).parents[2]


def _benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.large_model", "--gigabytes", "0.02", "--width", "512", "--stage-only"]
    return subprocess.run(
        [*command, "--dir", str(folder), *options], cwd=_ROOT, capture_output=True, text=True, check=False
    )


def test_it_measures_and_checks_a_pass_through(tmp_path: Path) -> None:
    done = _benchmark(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peak resident memory 0." in done.stdout
    assert done.stdout.count("relative error 0.0000") == 3


def test_its_bounds_are_checked_in_whatever_form_the_weights_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "large_model.md"
    monkeypatch.setattr(large_model, "RESULTS", results)
    options = ["--gigabytes", "0.02", "--width", "512", "--keep-params", "0.6", "--times-floor", "1e9", "--save"]
    monkeypatch.setattr(sys, "argv", ["large_model", *options, "--dir", str(tmp_path / "files")])
    assert large_model.main() == 0
    printed = capsys.readouterr().out
    assert "floor of the time: " in printed
    assert "no fault was found" in results.read_text(encoding="utf-8")
    names = {tensor.name for tensor in load_model(tmp_path / "files/small.onnx").skeleton.graph.initializer}
    assert any(name.endswith((".before", ".after")) for name in names)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--times-floor", "1e-6"])
    assert large_model.main() == 1
    assert "FAILED: the run took" in capsys.readouterr().out


def test_it_fails_above_its_limit(tmp_path: Path) -> None:
    done = _benchmark(tmp_path, "--limit", "0.001")
    assert done.returncode == 1
    assert "FAILED: the peak of" in done.stdout


def test_it_fails_on_wrong_weights(tmp_path: Path) -> None:
    blocks = plan_weights(20_000_000, 512)
    write_model(tmp_path / "large.onnx", blocks)
    with stage_model(load_model(tmp_path / "large.onnx"), tmp_path / "small.onnx") as staged:
        staged.commit()
    assert find_faults(tmp_path / "large.onnx", tmp_path / "small.onnx", blocks, stage_only=True) == []
    (data,) = tmp_path.glob("small.*.data")
    content = bytearray(data.read_bytes())
    content[: 1 << 20] = bytes(1 << 20)
    data.write_bytes(content)
    (fault,) = find_faults(tmp_path / "large.onnx", tmp_path / "small.onnx", blocks, stage_only=True)
    assert fault == "block0.attention has a relative error of 1.0000: expected at most 0.0000"
    data.write_bytes(b"")
    (fault,) = find_faults(tmp_path / "large.onnx", tmp_path / "small.onnx", blocks, stage_only=True)
    assert "the result can't be loaded: tensor 'block0.attention' wants bytes" in fault
    (tmp_path / "small.onnx").write_bytes(b"")
    (fault,) = find_faults(tmp_path / "large.onnx", tmp_path / "small.onnx", blocks, stage_only=True)
    assert "onnx.checker refuses" in fault


def test_the_weights_are_what_the_bound_assumes() -> None:
    weight = plan_weights(1, 512)[0][1]
    values = np.concatenate(list(weight_blocks(weight)))
    assert values.shape == (512, 1376)
    energies = np.linalg.eigvalsh(values.astype(np.float64) @ values.T.astype(np.float64))  # ascending
    tail = float(np.sqrt(energies[:-SIGNAL_RANK].sum() / energies.sum()))
    assert tail < NOISE_SHARE / np.sqrt(1 + NOISE_SHARE**2) * 1.02
    assert tail == pytest.approx(NOISE_SHARE / np.sqrt(1 + NOISE_SHARE**2), rel=0.15)
