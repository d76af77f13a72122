from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import lowrank_onnx
from lowrank_onnx.cli import main
from lowrank_onnx.demo import CALIBRATION_BATCH, DEMO_BUDGETS, count_accuracy, find_demo_files, run_demo
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.progress import SILENT
from lowrank_onnx.results import CompressionResult
from tests.report.samples import compression
from tests.report.schema_check import problems
from tests.tiny_model import classifier

IMAGES, LABELS = 30, 40


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A directory like the repository's models/, with tiny models of the same signature."""
    place = tmp_path / "models"
    place.mkdir()
    for name in DEMO_BUDGETS:
        onnx.save(classifier(features=784, hidden=64, shape=(1, 28, 28)), place / f"{name}.onnx")
    rng = np.random.default_rng(8)
    np.savez(
        place / "fashion_mnist.npz",
        calib_image=rng.integers(0, 256, (IMAGES + CALIBRATION_BATCH, 1, 28, 28), dtype=np.uint8),
        test_image=rng.integers(0, 256, (LABELS, 1, 28, 28), dtype=np.uint8),
        test_label=rng.integers(0, 10, LABELS, dtype=np.uint8),
        mean=np.float32(0.25),
        std=np.float32(0.5),
    )
    return place


def test_images_are_normalised_as_the_models_take_them(shipped: Path) -> None:
    files = find_demo_files(shipped)
    with np.load(shipped / "fashion_mnist.npz") as arrays:
        pixels = arrays["test_image"]
    expected = (pixels / 255.0 - 0.25) / 0.5
    assert files.images.dtype == np.float32
    np.testing.assert_allclose(files.images, expected, rtol=1e-6, atol=1e-6)


def test_accuracy_counts_the_right_answers(shipped: Path) -> None:
    files = find_demo_files(shipped)
    model = shipped / "fashion_vgg.onnx"
    reference = ReferenceEvaluator(onnx.load(model))
    scores = np.asarray(next(iter(reference.run(None, {"x": files.images}))))
    answers = scores.argmax(axis=-1)
    assert count_accuracy(model, files.images, answers) == 1.0
    wrong = answers.copy()
    wrong[:10] = (wrong[:10] + 1) % 10
    assert count_accuracy(model, files.images, wrong) == 0.75


@pytest.mark.parametrize("name", ["fashion_vgg.onnx", "fashion_vit.onnx", "fashion_mnist.npz"])
def test_missing_models_are_explained(shipped: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (shipped / name).unlink()
    assert main(["demo", "--models", str(shipped)]) == 2
    assert capsys.readouterr().err == (
        f"error: demo: {shipped} lacks {name}: the models come with the repository, not with the wheel; clone it, or "
        "point --models to its models directory\n"
    )


@pytest.mark.parametrize("content", [b"junk", b"", b"PK\x03\x04 cut off"])
def test_damaged_images_are_explained(shipped: Path, content: bytes) -> None:
    (shipped / "fashion_mnist.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"fashion_mnist\.npz is damaged"):
        find_demo_files(shipped)


def test_an_archive_without_labels_is_damaged(shipped: Path) -> None:
    np.savez(shipped / "fashion_mnist.npz", calib_image=np.zeros(3))
    with pytest.raises(UsageError, match="is damaged"):
        find_demo_files(shipped)


def test_what_the_pipeline_is_given_and_what_becomes_of_it(shipped: Path, tmp_path: Path) -> None:
    files = find_demo_files(shipped)
    calls: list[tuple[Path, dict[str, Any]]] = []

    def compress(model: Path, config: Any, /, **rest: Any) -> CompressionResult:
        calls.append((model, {"config": config, **rest}))
        if model.stem == "fashion_vit":
            return compression(status="rejected", output=None)
        shutil.copy(model, rest["output"])
        return compression(output=str(rest["output"]))

    rows = run_demo(files, tmp_path, compress, seed=9, progress=SILENT)
    assert [row.model for row in rows] == list(DEMO_BUDGETS)
    assert [call[1]["config"].budget for call in calls] == list(DEMO_BUDGETS.values())
    assert {call[1]["config"].seed for call in calls} == {9}
    feeds = calls[0][1]["feeds"]
    assert [feed["x"].shape[0] for feed in feeds] == [CALIBRATION_BATCH, IMAGES]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), files.calibration)
    assert rows[0].accuracy_after == rows[0].accuracy_before  # the fake pipeline copied the model
    assert rows[1].accuracy_after is None
    assert rows[0].images == LABELS


@pytest.mark.parametrize("flags", [["--quiet"], ["--json", "-"]])
def test_a_rejected_model_is_named_where_no_table_is_shown(
    shipped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    fake = ModuleType("lowrank_onnx.pipeline")
    rejected = compression(status="rejected", output=None, message="not written: slow")
    monkeypatch.setattr(fake, "compress", lambda *args, **rest: rejected, raising=False)
    monkeypatch.setitem(sys.modules, "lowrank_onnx.pipeline", fake)
    monkeypatch.setattr(lowrank_onnx, "pipeline", fake, raising=False)
    assert main(["demo", "--models", str(shipped), *flags]) == 1
    assert capsys.readouterr().err == ("error: fashion_vgg: not written: slow\nerror: fashion_vit: not written: slow\n")


def test_the_whole_demo(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowrank_onnx.report.schema import report_schema

    out = tmp_path / "results"
    code = main(["demo", "--models", str(shipped), "--out", str(out), "--json", str(tmp_path / "demo.json")])
    assert code in (0, 1)  # whether models this small get faster is up to the machine
    document = json.loads((tmp_path / "demo.json").read_text())
    schema = report_schema()
    assert problems(document, schema, schema) == []
    written = {row["model"] for row in document["rows"] if row["result"]["status"] == "written"}
    assert {path.name for path in out.iterdir()} == {f"{name}.lowrank.onnx" for name in written}
    assert code == (0 if len(written) == 2 else 1)
    printed = capsys.readouterr().out
    assert "top-1 accuracy" in printed
    assert "deleted" not in printed


def test_out_that_is_a_file(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lowrank_onnx.demo import prepare_directory

    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"taken: can't be made \(File exists\): give another directory"):
        prepare_directory(tmp_path / "taken")
