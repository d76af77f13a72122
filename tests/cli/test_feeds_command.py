from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from lowrank_onnx.cli import main
from tests.feed_files.samples import IMAGE_INPUT, TOKEN_INPUT, write_identity, write_images, write_tokenizer


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_images(tmp_path / "photos", 5)
    (tmp_path / "lines.txt").write_text("a tree grows\na tree\n")
    write_tokenizer(tmp_path / "tokenizer.json")


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command.split()) in (2, 3)
    assert not Path("calib.npz").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_images_for_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    write_identity(Path("model.onnx"), {"pixels": IMAGE_INPUT})
    arguments = "feeds images photos --size 8 --mean 0.5,0.4,0.3 --std 0.2 --model model.onnx -o calib.npz --samples 4"
    assert main(arguments.split()) == 0
    with np.load("calib.npz") as archive:
        assert archive["pixels"].shape == (4, 3, 8, 8)
        np.testing.assert_allclose(archive["pixels"][3, :, 0, 0], [(3 / 255 - 0.5) / 0.2, -0.0392157, 2.4215686], 1e-5)
    assert capsys.readouterr().out == "calib.npz: 4 of 5 images\n  pixels: float32 (4, 3, 8, 8)\n"
    assert main(["validate", "model.onnx", "model.onnx", "--data", "calib.npz", "--quiet"]) == 0


def test_text_for_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    inputs = {"input_ids": TOKEN_INPUT, "attention_mask": TOKEN_INPUT, "token_type_ids": TOKEN_INPUT}
    write_identity(Path("model.onnx"), inputs)
    arguments = "feeds text lines.txt --tokenizer tokenizer.json --length 4 --model model.onnx -o calib.npz"
    assert main(arguments.split()) == 0
    with np.load("calib.npz") as archive:
        assert sorted(archive) == sorted(inputs)
        assert archive["input_ids"].tolist() == [[2, 3, 4, 0], [2, 3, 0, 0]]
    assert "calib.npz: 2 of 2 lines" in capsys.readouterr().out
    assert main(["validate", "model.onnx", "model.onnx", "--data", "calib.npz", "--quiet"]) == 0


def test_without_a_model_names_are_taken_as_given() -> None:
    command = "feeds text lines.txt --tokenizer tokenizer.json --ids t --mask m -o calib.npz"
    assert main(command.split()) == 0
    with np.load("calib.npz") as archive:
        assert {name: archive[name].shape for name in archive} == {"t": (2, 128), "m": (2, 128)}
    command = "feeds images photos --size 4x6 --layout nhwc --input x -o images.npz"
    assert main(command.split()) == 0
    with np.load("images.npz") as archive:
        assert archive["x"].shape == (5, 4, 6, 3)


def test_a_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_identity(Path("model.onnx"), {"pixels": IMAGE_INPUT})
    images = "feeds images photos -o calib.npz --size 8"
    assert "give --input NAME or --model MODEL" in refused(images, capsys)
    assert "no input 'x', expected one of pixels" in refused(f"{images} --model model.onnx --input x", capsys)
    assert "axis 1 has to be 3 (--size, --layout and --channels make the shape)" in refused(
        f"{images} --model model.onnx --layout nhwc", capsys
    )
    assert "axis 2 has to be 8" in refused(f"{images} --model model.onnx --size 6", capsys)
    assert "holds uint8, the model's input is float32" in refused(f"{images} --model model.onnx --dtype uint8", capsys)
    assert "--samples 0: expected at least 1" in refused(f"{images} --input x --samples 0", capsys)
    assert "--size 8y: expected pixels" in refused("feeds images photos -o calib.npz --size 8y --input x", capsys)
    assert "--mean a: expected numbers with commas" in refused(f"{images} --input x --mean a", capsys)
    assert "nowhere.onnx" in refused(f"{images} --model nowhere.onnx", capsys)
    assert "ends in .npz" in refused("feeds images photos --size 8 --input x -o calib.json", capsys)
    text = "feeds text lines.txt --tokenizer tokenizer.json -o calib.npz"
    assert "no input 'input_ids', expected one of pixels" in refused(f"{text} --model model.onnx", capsys)


def test_an_existing_file_is_replaced_only_with_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("calib.npz").write_bytes(b"old")
    arguments = ["feeds", "images", "photos", "--size", "8", "--input", "x", "-o", "calib.npz"]
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("calib.npz").read_bytes() == b"old"
    assert main([*arguments, "--force"]) == 0
    assert main(["feeds", "text", "calib.npz", "--tokenizer", "t.json", "-o", "calib.npz", "--force"]) == 2
    assert "is one of the files to read" in capsys.readouterr().err


def test_inputs_that_are_left_to_the_user_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_identity(Path("model.onnx"), {"pixels": IMAGE_INPUT, "scale": (TensorProto.FLOAT, ["n", 1])})
    images = "feeds images photos -o calib.npz --size 8 --model model.onnx"
    assert "the model has the inputs pixels, scale: name one with --input" in refused(images, capsys)
    assert main([*images.split(), "--input", "pixels"]) == 0
    assert "the model also takes scale: add them with numpy" in capsys.readouterr().out
