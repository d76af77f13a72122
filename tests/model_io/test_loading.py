from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io import Model, base_dir, complete_proto, load_model, model_bytes
from lowrank_onnx.model_io.tensors import find_tensors

from .builders import canonical, pattern, perceptron, raw_tensor, rich_model, save_external


def _exercise(model: Model) -> None:
    """Read all there is of a model; what may fail in a damaged one is a ModelError."""
    for found in find_tensors(model.skeleton):
        try:
            model.store.array(found.tensor)
        except ModelError:
            continue


def test_a_files_skeleton_has_no_large_raw_data(tmp_path: Path) -> None:
    original = rich_model()
    path = tmp_path / "rich.onnx"
    onnx.save_model(original, path)
    model = load_model(str(path))
    assert (model.name, model.path, model.external) == ("rich.onnx", path, False)
    assert model.file_bytes == path.stat().st_size
    assert base_dir(model) == tmp_path
    assert max(len(found.tensor.raw_data) for found in find_tensors(model.skeleton)) < 1024
    assert canonical(complete_proto(model)) == canonical(original)
    assert model_bytes(model) == canonical(original)
    assert load_model(path).skeleton != model.skeleton  # placeholders can't be guessed


def test_a_relative_path_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_external(perceptron(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    model = load_model("m.onnx")
    monkeypatch.chdir("/")
    assert model.store.array(model.skeleton.graph.initializer[0]).shape == (64, 64)
    assert model.path == tmp_path / "m.onnx"


def test_a_model_in_memory_is_not_watched() -> None:
    original = perceptron()
    model = load_model(original)
    assert (model.name, model.path, model.external, base_dir(model)) == ("perceptron", None, False, None)
    assert model.file_bytes == original.ByteSize()
    expected = canonical(original)
    original.graph.initializer[0].raw_data = bytes(64 * 64 * 4)
    assert model_bytes(model) == expected


def test_a_graph_goes_through_its_own_export() -> None:
    model = load_model(gs.import_onnx(perceptron()))
    (first, *_) = [f.tensor for f in find_tensors(model.skeleton) if f.tensor.name == "first"]
    assert np.array_equal(model.store.array(first), onnx.numpy_helper.to_array(perceptron().graph.initializer[0]))
    broken = gs.import_onnx(perceptron())
    broken.outputs[0].dtype = None
    with pytest.raises(ModelError, match="onnx-graphsurgeon can't export this model"):
        load_model(broken)


def test_other_objects_are_refused() -> None:
    with pytest.raises(ModelError, match=r"a dict is no model: expected a path, an onnx\.ModelProto"):
        load_model(cast("Any", {}))


def test_external_data_stays_external_in_the_bytes(tmp_path: Path) -> None:
    path = save_external(perceptron(), tmp_path / "m.onnx")
    model = load_model(path)
    assert model.external
    assert model.file_bytes == path.stat().st_size + (tmp_path / "m.onnx.data").stat().st_size
    assert model_bytes(model) == canonical(onnx.load(path, load_external_data=False))
    assert canonical(complete_proto(model)) == canonical(perceptron())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base_dir(model)))
    session = onnxruntime.InferenceSession(model_bytes(model), options, providers=["CPUExecutionProvider"])
    direct = onnxruntime.InferenceSession(canonical(perceptron()), providers=["CPUExecutionProvider"])
    feed = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    assert np.array_equal(session.run(None, feed)[0], direct.run(None, feed)[0])


def test_loading_a_large_inline_file_reads_only_headers(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    tensors = [raw_tensor(f"t{i}", 1, 5 << 20, bytes(20 << 20)) for i in range(10)]
    path.write_bytes(canonical(onnx.ModelProto(graph=onnx.GraphProto(name="g", initializer=tensors))))
    del tensors
    before = psutil.Process().memory_info().rss
    model = load_model(path)
    assert psutil.Process().memory_info().rss - before < 10 << 20
    assert model.skeleton.ByteSize() < 5000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: expected an ONNX model"),
        (b'{\n  "irVersion": 8}', "JSON text: load it with onnx.load"),
        (b"ir_version: 8\ngraph {\n}\n", "protobuf text: load it with onnx.load"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "a web page or XML"),
        (b"PK\x03\x04" + bytes(100), "a zip archive or a PyTorch checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (gzip.compress(pattern(5000), mtime=0), "no ONNX model, or cut off"),
        (pattern(5000), "no ONNX model, or cut off"),
        (b"\x08\x0a", "holds no graph"),
        (bytes(100), "begins no field"),
    ],
)
def test_what_is_no_model_gets_one_clear_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path / "missing.onnx", "no such file"),
        (tmp_path / "pipe" / "m.onnx", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("nul\0.onnx", "is no usable path"),
    ]:
        with pytest.raises(ModelError, match=f"{reason}: expected the path of an ONNX model file"):
            load_model(path)


def test_a_model_that_is_too_deep_in_memory() -> None:
    model = perceptron()
    graph = model.graph
    for _ in range(60):
        graph = graph.node.add().attribute.add(type=onnx.AttributeProto.GRAPH).g
    graph.name = "innermost"
    with pytest.raises(ModelError, match="nested too deeply"):
        load_model(model)


def test_a_cut_file_is_an_error_at_every_length(tmp_path: Path) -> None:
    whole = canonical(rich_model())
    path = tmp_path / "m.onnx"
    # Cut at one byte in 4,001, not in the last fields of the model, without which it is whole.
    for length in [*range(1, 2000, 53), *range(2000, len(whole) - 20_000, 4001)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load_model(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(canonical(perceptron(16)) if data.draw(st.booleans()) else canonical(rich_model()))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(len(whole), 4000) - 1)) * data.draw(st.sampled_from([1, -1]))
        whole[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    try:
        model = load_model(path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        _exercise(model)
