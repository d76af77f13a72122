"""What exporters write is compressed from end to end: the files that ship, and those that the scripts write now."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lowrank_onnx import Config, KeepParams, compress
from lowrank_onnx.evaluate import open_session
from tests.models.exported import EXPORTERS, EXPORTS, calibration, image_layout

CONFIG = Config(budget=KeepParams(0.6), objective="size", effort="fast")
TESTING = slice(1400, None)


def accuracy(model: Path) -> float:
    """On the images that neither training nor calibration saw."""
    digits = load_digits()
    session = open_session(model)
    (spec,) = session.inputs
    images = image_layout(digits, spec.shape)[TESTING]
    scores = session.run({spec.name: images})[session.outputs[0]]
    return float((scores.argmax(1) == digits.target[TESTING]).mean())


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_an_export_that_ships_becomes_smaller_and_stays_as_good(name: str, tmp_path: Path) -> None:
    original = EXPORTERS / name
    feeds = calibration(original, tmp_path / "calib.npz")
    result = compress(original, CONFIG, feeds=feeds, output=tmp_path / "small.onnx")
    assert result.status == "written", result.message
    assert result.after is not None
    assert result.after.parameters <= 0.6 * result.before.parameters + 200  # biases stay
    assert {site.op_type for site in result.sites} in ({"Conv", "Gemm"}, {"Conv", "MatMul"})
    assert len(result.sites) == 4
    assert accuracy(original) > 0.9
    assert accuracy(tmp_path / "small.onnx") > accuracy(original) - 0.01


@pytest.mark.parametrize(
    ("script", "package", "backend", "written"),
    [
        ("export_sklearn.py", "skl2onnx", "", "digits_sklearn.onnx"),
        ("export_pytorch.py", "torch", "", "digits_pytorch.onnx"),
        ("export_keras.py", "keras", "torch", "digits_keras_torch.onnx"),
        ("export_keras.py", "keras", "tensorflow", "digits_keras_tensorflow.onnx"),
    ],
)
def test_what_a_script_writes_now_is_compressed(
    script: str, package: str, backend: str, written: str, tmp_path: Path
) -> None:
    for needed in filter(None, (package, backend)):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    environment = {**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(EXPORTERS / script)]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    (feeds,) = tmp_path.glob("calib_*.npz")
    result = compress(tmp_path / written, CONFIG, feeds=feeds, output=tmp_path / "small.onnx")
    assert result.status == "written", result.message
    assert accuracy(tmp_path / written) > 0.9
    assert accuracy(tmp_path / "small.onnx") > accuracy(tmp_path / written) - 0.01


def test_calibration_is_what_the_scripts_save(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(EXPORTERS / "export_sklearn.py")], cwd=tmp_path, capture_output=True, check=True
    )
    saved = np.load(tmp_path / "calib_sklearn.npz")
    with np.load(calibration(tmp_path / "digits_sklearn.onnx", tmp_path / "calib.npz")) as made:
        assert {name: made[name].tobytes() for name in made} == {name: saved[name].tobytes() for name in saved}
