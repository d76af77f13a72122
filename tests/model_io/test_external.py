from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io import base_dir, load_model, model_bytes

from .builders import perceptron, save_external


def _write(folder: Path, entries: dict[str, str], **fields: Any) -> Path:
    """A model whose only initializer, 16 floats, has these external data entries; its data file has 128 bytes."""
    chosen: dict[str, Any] = {"data_type": 1, "dims": [4, 4], **fields}
    tensor = onnx.TensorProto(name="w\n\x1b[2J", data_location=onnx.TensorProto.EXTERNAL, **chosen)
    for key, value in entries.items():
        tensor.external_data.add(key=key.rstrip("*"), value=value)
    folder.mkdir(exist_ok=True)
    model = onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(name="g", initializer=[tensor]))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(np.arange(32, dtype=np.float32).tobytes())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("", "it is empty"),
        ("../outside.bin", "it leads upwards"),
        ("sub/../../outside.bin", "it leads upwards"),
        ("..", "it leads upwards"),
        ("sub/..", "it leads upwards"),
        ("/etc/passwd", "it is an absolute path"),
        ("//server/share/w.bin", "it is an absolute path"),
        ("C:w.bin", "it is an absolute path"),
        ("c:/w.bin", "it is an absolute path"),
        ("..\\outside.bin", "it holds a backslash"),
        ("\\\\server\\share", "it holds a backslash"),
        ("w.bin\0.png", "it holds a NUL character"),
        ("*/_ORT_MEM_ADDR_/*", "it is the mark of a tensor in another program's memory"),
        ("lowrank-onnx:0123456789abcdef0123456789abcdef:0", "has the placeholder"),
        ("lowrank-onnx:new:first", "has the placeholder"),
        ("missing.bin", "which is not in"),
        ("sub/w.bin", "which is not in"),
        ("x" * 5000, "File name too long"),
        (".", "is a directory"),
        ("folder", "is a directory"),
        ("pipe", "is no regular file"),
        ("escape.bin", "a symbolic link leads out of the model's directory"),
        ("escape/outside.bin", "a symbolic link leads out of the model's directory"),
        ("loop", "symbolic links"),
        ("dangling", "which is not in"),
        ("w.bin/x", "Not a directory"),
    ],
)
def test_hostile_locations_are_refused(tmp_path: Path, location: str, reason: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(128))
    path = _write(tmp_path / "model", {"location": location, "length": "64"})
    folder = path.parent
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "escape.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "escape").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert reason in message
    assert r"tensor 'w\n\x1b[2J'" in message
    assert "\n" not in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("entries", "fields", "reason"),
    [
        ({"offset": "-1"}, {}, "offset '-1': expected a whole number"),
        ({"offset": "1e3"}, {}, "offset '1e3': expected a whole number"),
        ({"offset": " 0"}, {}, "offset ' 0'"),
        ({"offset": "٣"}, {}, "offset '\\u0663'"),
        ({"offset": ""}, {}, "offset ''"),
        ({"length": "9" * 5000}, {}, "length '9999"),
        ({"length": "-64"}, {}, "length '-64'"),
        ({"length": "63"}, {}, "has 63 bytes of external data in 'w.bin': expected 64"),
        ({"length": "0"}, {}, "has 0 bytes of external data"),
        ({"offset": "65"}, {}, "wants bytes 65 to 129 of 'w.bin', which has 128"),
        ({"offset": "9223372036854775807"}, {}, "wants bytes 9223372036854775807 to"),
        ({}, {"dims": [4, 9]}, "wants bytes 0 to 144"),
        ({}, {"dims": [2**62, 2**62]}, "wants bytes 0 to 85070591730234615865843651857942052864"),
        ({}, {"dims": [-4, -4]}, "expected none below 0"),
        ({}, {"data_type": 0}, "has element type 0"),
        ({}, {"data_type": 77}, "has element type"),
        ({}, {"data_type": 8}, "keeps strings in external data"),
        ({"location*": "other.bin"}, {}, "has 2 external data entries 'location': expected one"),
        ({"offset": "0", "offset*": "64"}, {}, "has 2 external data entries 'offset': expected one"),
    ],
)
def test_impossible_ranges_are_refused(
    tmp_path: Path, entries: dict[str, str], fields: dict[str, Any], reason: str
) -> None:
    path = _write(tmp_path, {"location": "w.bin", **entries}, **fields)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "fields", "expected"),
    [
        ({}, {}, range(16)),
        ({"offset": "64", "length": "64"}, {}, range(16, 32)),
        ({"offset": "128"}, {"dims": [0, 4]}, range(0)),
        ({"checksum": "x", "basepath": "/etc", "prepacked_0": "y"}, {}, range(16)),
    ],
)
def test_sound_ranges_are_read(
    tmp_path: Path, entries: dict[str, str], fields: dict[str, Any], expected: range
) -> None:
    model = load_model(_write(tmp_path, {"location": "w.bin", **entries}, **fields))
    assert model.store.array(model.skeleton.graph.initializer[0]).ravel().tolist() == list(expected)
    assert model.external
    assert model.file_bytes == (tmp_path / "m.onnx").stat().st_size + 128


def test_packed_types_need_their_packed_length(tmp_path: Path) -> None:
    fields = {"data_type": onnx.TensorProto.INT4, "dims": [15]}
    model = load_model(_write(tmp_path, {"location": "w.bin", "length": "8"}, **fields))
    assert model.store.array(model.skeleton.graph.initializer[0]).shape == (15,)
    with pytest.raises(ModelError, match=r"has 15 bytes of external data in 'w\.bin': expected 8"):
        load_model(_write(tmp_path, {"location": "w.bin", "length": "15"}, **fields))


def test_a_location_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, {"location": "w.biN"})
    path.write_bytes(path.read_bytes().replace(b"w.biN", b"w.bi\xff"))
    with pytest.raises(ModelError, match="it is empty or no UTF-8"):
        load_model(path)


@pytest.mark.parametrize("place", ["node", "subgraph", "function", "sparse", "training"])
def test_references_are_checked_wherever_they_are(tmp_path: Path, place: str) -> None:
    tensor = onnx.TensorProto(name="hidden", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model = perceptron()
    graph = onnx.GraphProto(name="inner", initializer=[tensor])
    if place == "node":
        model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    elif place == "subgraph":
        model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH, g=graph)
    elif place == "function":
        model.functions.add(name="f").node.add().attribute.add(name="value", t=tensor)
    elif place == "sparse":
        model.graph.sparse_initializer.add(values=tensor)
    else:
        model.training_info.add(algorithm=graph)
    with pytest.raises(ModelError, match="tensor 'hidden' has external data in '/etc/passwd', which is refused"):
        load_model(model, base_dir=tmp_path)


def test_a_model_in_memory_needs_a_directory(tmp_path: Path) -> None:
    path = save_external(perceptron(), tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="a model in memory has no directory: give base_dir="):
        load_model(proto)
    model = load_model(proto, base_dir=tmp_path)
    assert model.store.array(model.skeleton.graph.initializer[0]).shape == (64, 64)


def test_a_cache_of_symbolic_links_is_followed(tmp_path: Path) -> None:
    """The layout of a Hugging Face cache: names are links into one directory of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_external(perceptron(), tmp_path / "m.onnx")
    for number, name in enumerate(("m.onnx", "m.onnx.data")):
        (tmp_path / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    model = load_model(snapshot / "m.onnx")
    assert model.name == "m.onnx"
    assert base_dir(model) == blobs
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base_dir(model)))
    onnxruntime.InferenceSession(model_bytes(model), options, providers=["CPUExecutionProvider"])
    assert model.store.array(model.skeleton.graph.initializer[0]).shape == (64, 64)
    (tmp_path / "secret").write_bytes((blobs / "1").read_bytes())
    (snapshot / "m.onnx.data").unlink()
    (snapshot / "m.onnx.data").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="a symbolic link leads out"):
        load_model(snapshot / "m.onnx")


def test_links_inside_the_directory_are_followed(tmp_path: Path) -> None:
    path = _write(tmp_path / "model", {"location": "link.bin"})
    (path.parent / "link.bin").symlink_to("w.bin")
    (tmp_path / "alias").symlink_to("model")
    for folder in ("model", "alias"):
        model = load_model(tmp_path / folder / "m.onnx")
        assert model.store.array(model.skeleton.graph.initializer[0]).ravel().tolist() == list(range(16))
