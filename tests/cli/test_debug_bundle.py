from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank_onnx import pipeline
from lowrank_onnx.bare_graph import LONGEST_STRING, MOST_ENTRIES, bare_graph
from lowrank_onnx.cli import main

SECRET = b"do not tell"


def _secret(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def telling_model() -> onnx.ModelProto:
    """A model that holds values wherever onnx can keep some."""
    tensors = [numpy_helper.from_array(_secret(32, 32, seed=seed), f"t{seed}") for seed in range(6)]
    as_floats = TensorProto(name="floats", data_type=TensorProto.FLOAT, dims=[4], float_data=[1.5, 2.5, 3.5, 4.5])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(_secret(3, seed=7), "s"), numpy_helper.from_array(np.arange(3), "i"), [9]
    )
    then = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=tensors[2]), helper.make_node("MatMul", ["x", "k"], ["a"])],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        [tensors[3]],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "t0"], ["h"], name="first"),
        helper.make_node("Constant", [], ["c"], value=tensors[1]),
        helper.make_node("Constant", [], ["cf"], value_floats=_secret(40, seed=8).tolist()),
        helper.make_node("Constant", [], ["cs"], value_string=SECRET),
        helper.make_node("Constant", [], ["ci"], value_int=123456789),
        helper.make_node("If", ["b"], ["o"], then_branch=then, else_branch=then),
        helper.make_node("Table", ["h"], ["y"], domain="d", weights=_secret(40, seed=9).tolist(), axis=1, mode="linear",
                         words=[SECRET * 99], ids=list(range(1000)), blob=SECRET * 99, kernel_shape=[3, 3]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "telling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensors[0], as_floats],
        doc_string=SECRET.decode(),
        sparse_initializer=[sparse],
    )
    function = helper.make_function(
        "d", "Table", ["a"], ["b"], [helper.make_node("Constant", [], ["b"], value=tensors[4])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 17)])
    model.metadata_props.add(key="dictionary", value=SECRET.decode())
    model.training_info.add().algorithm.initializer.append(tensors[5])
    # A field that this onnx doesn't know: a parser keeps it, and a copy of the message would.
    model.ParseFromString(model.SerializeToString() + b"\xfa\x3f" + bytes([len(SECRET)]) + SECRET)
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    for field, value in message.ListFields():
        for one in value if isinstance(value, list) or hasattr(value, "add") else [value]:
            if isinstance(one, onnx.TensorProto):
                yield one
            elif field.message_type is not None and hasattr(one, "ListFields"):
                yield from _tensors(one)


def _slices(values: bytes) -> list[bytes]:
    """The values one by one, each of which would give them away."""
    return [values[start : start + 4] for start in range(0, len(values), 4)]


def test_no_value_is_left() -> None:
    model = telling_model()
    before = model.SerializeToString()
    assert SECRET in before
    bare = bare_graph(model)
    content = bare.SerializeToString()
    assert model.SerializeToString() == before
    assert SECRET not in content
    values = [_secret(32, 32, seed=seed) for seed in range(6)] + [
        _secret(3, seed=7),
        _secret(40, seed=8),
        _secret(40, seed=9),
    ]
    pieces = [piece for value in values for piece in _slices(value.tobytes())]
    assert all(piece in before for piece in pieces)  # the check would see them
    assert not any(piece in content for piece in pieces)
    found = list(_tensors(bare))
    assert len(found) == 10
    filled = ("raw_data", "float_data", "int32_data", "int64_data", "string_data", "external_data")
    assert not any(getattr(tensor, name) for tensor in found for name in filled)
    assert not any(a.floats or a.HasField("s") or a.HasField("i") for n in bare.graph.node[1:5] for a in n.attribute)


def test_names_shapes_types_and_settings_stay() -> None:
    bare = bare_graph(telling_model())
    assert [node.op_type for node in bare.graph.node] == [node.op_type for node in telling_model().graph.node]
    first = bare.graph.initializer[0]
    assert (first.name, list(first.dims), first.data_type) == ("t0", [32, 32], TensorProto.FLOAT)
    settings = {one.name: helper.get_attribute_value(one) for one in bare.graph.node[6].attribute}
    assert (settings["axis"], settings["mode"], settings["kernel_shape"]) == (1, b"linear", [3, 3])
    assert (settings["ids"], settings["words"], settings["blob"]) == ([], [], b"")
    assert MOST_ENTRIES < 1000
    assert len(SECRET * 99) > LONGEST_STRING
    then = bare.graph.node[5].attribute[0].g
    assert list(then.node[0].attribute[0].t.dims) == [32, 32]
    assert bare.functions[0].node[0].attribute[0].t.name == "t4"
    assert [entry.key for entry in bare.metadata_props] == ["dictionary"]


# The bundle


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weight = _secret(64, 64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
    return tmp_path / "model.onnx"


def _entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


RANK = ["--rank", "8", "--objective", "size", "--quiet"]


def test_what_a_run_leaves(model: Path) -> None:
    np.savez("feeds.npz", x=_secret(8, 64, seed=5))
    command = ["compress", "model.onnx", "--calib", "feeds.npz", *RANK, "--debug", "d.zip"]
    assert main(command) == 0
    entries = _entries(Path("d.zip"))
    texts = {"about.txt", "command.txt", "options.toml", "versions.json", "log.txt", "report.json"}
    assert set(entries) == texts | {"graph.onnx"}
    assert entries["command.txt"].decode() == f"lowrank-onnx {' '.join(command)}\n"
    assert b"rank = 8" in entries["options.toml"]
    assert json.loads(entries["versions.json"])["onnxruntime"]
    assert b"factorizing: begins, 1 units" in entries["log.txt"]
    assert json.loads(entries["report.json"])["status"] == "written"
    graph = onnx.load(io.BytesIO(entries["graph.onnx"])).graph
    assert [node.name for node in graph.node] == ["layer"]
    for values in (_secret(64, 64), _secret(8, 64, seed=5)):
        pieces = _slices(values.tobytes())
        assert pieces[0] in Path("model.onnx").read_bytes() + Path("feeds.npz").read_bytes()
        assert not any(piece in content for piece in pieces for content in entries.values())
    assert sorted(os.listdir()) == ["d.zip", "feeds.npz", "model.lowrank.onnx", "model.onnx"]


def test_what_a_bug_leaves(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(pipeline, "spool_factors", fail)
    assert main(["compress", "model.onnx", *RANK]) == 70
    assert "the same with --debug FILE.zip writes what to attach, without weights" in capsys.readouterr().err
    assert main(["compress", "model.onnx", *RANK, "--debug", "d.zip"]) == 70
    assert capsys.readouterr().err == (
        "error: this is a bug in lowrank-onnx, please report it: ZeroDivisionError: deep inside "
        "(attach d.zip, which holds no weights)\n"
    )
    entries = _entries(Path("d.zip"))
    assert b"in fail\n" in entries["traceback.txt"]
    assert b"ZeroDivisionError: deep inside" in entries["log.txt"]
    assert "report.json" not in entries
    assert "graph.onnx" in entries


OTHERS = (
    "inspect model.onnx",
    "validate model.onnx model.onnx",
    "sweep model.onnx --keep-params 0.5 --objective size",
)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_have_it_too(model: Path, command: str) -> None:
    assert main([*command.split(), "--quiet", "--debug", "d.zip"]) == 0
    entries = _entries(Path("d.zip"))
    assert json.loads(entries["report.json"])["kind"] == command.split()[0]
    assert ("2.graph.onnx" in entries) == command.startswith("validate")


def test_a_model_that_can_not_be_read(model: Path) -> None:
    model.write_bytes(b"\xff" * 99)
    assert main(["inspect", "model.onnx", "--debug", "d.zip"]) == 3
    entries = _entries(Path("d.zip"))
    assert entries["graph.txt"].startswith(b"the graph can't be read: ModelError: ")
    assert b"ModelError" in entries["traceback.txt"]


@pytest.mark.parametrize("place", ["nowhere/d.zip", "model.onnx", "."])
def test_a_bundle_that_can_not_be_written_is_refused_first(
    model: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    before = model.read_bytes()
    assert main(["compress", "model.onnx", *RANK, "--debug", place]) == 2
    assert capsys.readouterr().err.startswith(f"error: --debug {place}: ")
    assert model.read_bytes() == before
    assert os.listdir() == ["model.onnx"]
