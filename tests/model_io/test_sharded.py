"""Weights spread over several files, and the links of a Hugging Face cache, from the command line to the new file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.cli import main
from lowrank_onnx.model_io import load_model
from tests.passes.models import make_model, value, weight

SIZE = 32
SHARDS = ("model.onnx_data", "model.onnx_data_1", "parts/model.onnx_data_2")


def write_shards(folder: Path) -> Path:
    """Three MatMuls, each with a Relu, whose weights lie in three files, one of them in a folder of its own."""
    (folder / "parts").mkdir(parents=True)
    names = ["x", "h0", "h1", "y"]
    nodes = [h.make_node("MatMul", [names[i], f"w{i}"], [f"m{i}"], name=f"fc{i}") for i in range(3)]
    nodes += [h.make_node("Relu", [f"m{i}"], [names[i + 1]]) for i in range(3)]
    model = make_model(nodes, [value("x", ["n", SIZE])], [value("y", ["n", SIZE])])
    for index, shard in enumerate(SHARDS):
        (folder / shard).write_bytes(bytes(64) + weight(SIZE, SIZE, seed=index).tobytes())
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=onnx.TensorProto.FLOAT, dims=[SIZE, SIZE])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", shard), ("offset", "64"), ("length", str(4 * SIZE * SIZE))):
            tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def write_cache(root: Path) -> Path:
    """The same model as a Hugging Face cache holds it: names in a snapshot are links to blobs called by their hash."""
    repository = root / "hub" / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    source = write_shards(root / "original")
    blobs.mkdir(parents=True)
    (snapshot / "onnx" / "parts").mkdir(parents=True)
    for number, name in enumerate(("model.onnx", *SHARDS)):
        (source.parent / name).rename(blobs / f"{number:064x}")
        link = snapshot / "onnx" / name
        link.symlink_to(Path(*[".."] * (len(link.parts) - len(repository.parts) - 1), "blobs", f"{number:064x}"))
    return snapshot / "onnx" / "model.onnx"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [write_shards, write_cache])
def test_shards_are_compressed_into_regular_files_elsewhere(tmp_path: Path, write: object) -> None:
    source = (write_shards if write is write_shards else write_cache)(tmp_path / "in")
    before = contents(tmp_path / "in")
    target = tmp_path / "out" / "small.onnx"
    target.parent.mkdir()
    command = ["compress", str(source), "-o", str(target), "--alpha", "1", "--allow-larger", "--objective", "size"]
    assert main([*command, "--method", "svd", "--min-sqnr", "80", "--quiet"]) == 0
    assert contents(tmp_path / "in") == before
    written = list(target.parent.iterdir())
    assert len(written) == 2
    assert all(path.is_file() and not path.is_symlink() for path in written)
    result = load_model(target)
    held = {tensor.name: result.store.array(tensor) for tensor in result.skeleton.graph.initializer}
    for index in range(3):
        product = held[f"w{index}.left"] @ held[f"w{index}.right"]
        np.testing.assert_allclose(product, weight(SIZE, SIZE, seed=index), atol=1e-4)


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("where", ["outside", "other repository"])
def test_a_link_out_of_the_cache_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, where: str
) -> None:
    source = write_cache(tmp_path / "in")
    places = {"outside": tmp_path / "secret", "other repository": tmp_path / "in/hub/models--org--other/blobs/1"}
    secret = places[where]
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(bytes(64 + 4 * SIZE * SIZE))
    link = source.parent / name
    link.unlink()
    link.symlink_to(secret)
    target = tmp_path / "small.onnx"
    assert main(["compress", str(source), "-o", str(target), "--rank", "4", "--quiet"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"external data in '{name}', which is refused: a symbolic link leads out of the model's directory" in line
    assert not target.exists()


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_shards(tmp_path / "in")
    (source.parent / SHARDS[2]).unlink()
    assert main(["compress", str(source), "-o", str(tmp_path / "small.onnx"), "--rank", "4", "--quiet"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "tensor 'w2' has external data in 'parts/model.onnx_data_2', which is not in" in line
