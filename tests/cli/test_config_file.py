from __future__ import annotations

import tomllib
from pathlib import Path

import onnx
import pytest

from lowrank_onnx.cli import main
from lowrank_onnx.cli.config_file import read_options
from lowrank_onnx.errors import UsageError
from tests.tiny_model import write_classifier

KNOWN = {"keep-macs": "keep_macs", "keep-params": "keep_params", "exclude": "exclude"}
FLAGS = ["--objective", "size", "--no-validate", "--quiet"]


def _write(directory: Path, text: str) -> Path:
    path = directory / "options.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_are_flags_with_dashes_or_underscores(tmp_path: Path) -> None:
    path = _write(tmp_path, 'keep-macs = 0.6\nexclude = ["a/*", "b"]\n')
    assert read_options(path, KNOWN) == {"keep_macs": 0.6, "exclude": ["a/*", "b"]}
    assert read_options(_write(tmp_path, "keep_macs = 1"), KNOWN) == {"keep_macs": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep-mac = 0.6", "unknown key 'keep-mac': did you mean keep-macs?"),
        ("zzz = 1", "unknown key 'zzz': expected some of exclude, keep-macs, keep-params"),
        ("keep-macs = ", "is no TOML"),
        ("keep-macs = {a = 1}", "keep-macs is a dict: expected a string, a number, true or false, or a list"),
        ("exclude = [[1]]", "exclude is a list: expected"),
        ("[keep-macs]\na = 1", "keep-macs is a dict"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(_write(tmp_path, text), KNOWN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*nowhere\.toml: can't be read \(No such file"):
        read_options(tmp_path / "nowhere.toml", KNOWN)


def test_the_command_line_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    _write(tmp_path, 'rank = 8\nobjective = "size"\nno-validate = true\nquiet = true\n')
    assert main(["compress", "model.onnx", "--config", "options.toml", "-o", "a.onnx"]) == 0
    assert main(["compress", "model.onnx", "--config", "options.toml", "--rank", "32", "-o", "b.onnx"]) == 0
    ranks = [
        [t.dims[1] for t in onnx.load(tmp_path / name).graph.initializer if t.name == "w0.left"]
        for name in ("a.onnx", "b.onnx")
    ]
    assert ranks == [[8], [32]]


def test_what_was_dumped_gives_the_same_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    assert (
        main(["compress", "model.onnx", "--keep-params", "0.5", "-o", "a.onnx", "--dump-config", "d.toml", *FLAGS]) == 0
    )
    dumped = tomllib.loads((tmp_path / "d.toml").read_text())
    assert dumped["keep-params"] == 0.5
    assert dumped["seed"] == 0
    assert "config" not in dumped
    assert main(["compress", "model.onnx", "--config", "d.toml", "--force", "--output", "b.onnx"]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_wrong_values_in_a_file_are_found_like_those_of_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    _write(tmp_path, 'keep-macs = "half"\n')
    assert main(["compress", "model.onnx", "--config", "options.toml"]) == 2
    assert "'half' is not a number" in capsys.readouterr().err
    _write(tmp_path, "keep-mac = 0.5\n")
    assert main(["compress", "model.onnx", "--config", "options.toml"]) == 2
    assert capsys.readouterr().err == (
        "error: --config options.toml: unknown key 'keep-mac': did you mean keep-macs?\n"
    )
