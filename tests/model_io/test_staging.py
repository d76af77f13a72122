from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as nh
import onnxruntime
import psutil
import pytest

from lowrank_onnx.errors import ModelError, OutputError
from lowrank_onnx.model_io import (
    Model,
    StagedModel,
    check_target,
    complete_proto,
    load_model,
    model_bytes,
    new_tensor_proto,
    stage_model,
    staging,
)
from lowrank_onnx.model_io.tensors import find_tensors

from .builders import LARGE, canonical, pattern, perceptron, raw_tensor, rich_model, save_external

_FEED = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}


def _run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, _FEED)[0]
    return output


def _save(model: Model, path: Path, *, force: bool = False) -> Path:
    with stage_model(model, path, force=force) as staged:
        return staged.commit()


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _factorized(model: Model, value: float = 0.5, calls: list[str] | None = None) -> Model:
    """`first` of a perceptron replaced by two factors."""
    skeleton = copy.deepcopy(model.skeleton)
    graph = skeleton.graph
    graph.initializer.remove(next(t for t in graph.initializer if t.name == "first"))
    graph.initializer.append(new_tensor_proto("first.left", "float32", (64, 8), "first/left"))
    graph.initializer.append(new_tensor_proto("first.right", "float32", (8, 64), "first/right"))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.add(op_type="MatMul", input=["x", "first.left"], output=["a.mid"])
    graph.node.add(op_type="MatMul", input=["a.mid", "first.right"], output=["a"])
    graph.node.extend(nodes[1:])

    def provider(name: str, shape: tuple[int, int]) -> Callable[[], np.ndarray]:
        def provide() -> np.ndarray:
            if calls is not None:
                calls.append(name)
            return np.full(shape, value, np.float32)

        return provide

    return model.with_rewrite(
        skeleton, {"first/left": provider("left", (64, 8)), "first/right": provider("right", (8, 64))}
    )


def test_an_untouched_inline_model_round_trips_byte_for_byte(tmp_path: Path) -> None:
    original = rich_model()
    (tmp_path / "in.onnx").write_bytes(canonical(original))
    for source in (tmp_path / "in.onnx", original):
        with stage_model(load_model(source), tmp_path / "out.onnx", force=True) as staged:
            assert staged.file_bytes == len(canonical(original))
            assert staged.path.read_bytes() == canonical(original)
            assert staged.commit() == staged.path == tmp_path / "out.onnx"
        assert canonical(complete_proto(load_model(tmp_path / "out.onnx"))) == canonical(original)
    assert sorted(_listing(tmp_path)) == ["in.onnx", "out.onnx"]


def test_an_untouched_external_model_round_trips_in_another_directory(tmp_path: Path) -> None:
    original = rich_model()
    del original.graph.sparse_initializer[:], original.graph.node[1].attribute[4]  # onnx can't save these externally
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    copied = onnx.ModelProto.FromString(canonical(original))
    onnx.save_model(
        copied,
        tmp_path / "in" / "m.onnx",
        save_as_external_data=True,
        location="d",
        size_threshold=256,
        convert_attribute=True,
    )
    before = _listing(tmp_path / "in")
    target = _save(load_model(tmp_path / "in" / "m.onnx"), tmp_path / "out" / "small.onnx")
    shutil.rmtree(tmp_path / "in")
    (data,) = [p.name for p in (tmp_path / "out").iterdir() if p != target]
    assert re.fullmatch(r"small\.[0-9a-f]{16}\.data", data)
    completed = onnx.load(target)  # onnx's own reader
    for found in find_tensors(completed):
        if found.tensor.name != "explicit.default":
            found.tensor.ClearField("data_location")
    assert canonical(completed) == canonical(original)
    # All that differs from the input file is where external tensors lie.
    proto, source = onnx.load(target, load_external_data=False), onnx.ModelProto.FromString(before["m.onnx"])
    for found, origin in zip(find_tensors(proto), find_tensors(source), strict=True):
        assert bool(found.tensor.external_data) == bool(origin.tensor.external_data)
        if found.tensor.external_data:
            entries = {e.key: e.value for e in found.tensor.external_data}
            alignment = 4096 if int(entries["length"]) >= 1 << 20 else 64
            assert entries["location"] == data
            assert int(entries["offset"]) % alignment == 0
            del found.tensor.external_data[:], origin.tensor.external_data[:]
    assert canonical(proto) == canonical(source)


def test_a_rewritten_inline_model_is_one_file_that_runs(tmp_path: Path) -> None:
    calls: list[str] = []
    model = _factorized(load_model(perceptron()), calls=calls)
    with stage_model(model, tmp_path / "small.onnx") as staged:
        assert sorted(calls) == ["left", "right"]  # each once
        output = _run(staged.path)
        assert staged.file_bytes == staged.path.stat().st_size
        staged.commit()
    weights = {t.name: nh.to_array(t) for t in perceptron().graph.initializer}
    x = _FEED["x"] @ np.full((64, 64), 2.0, np.float32) + weights["bias"]
    np.testing.assert_allclose(output, np.maximum(x, 0) @ weights["second"], rtol=1e-4, atol=1e-3)
    assert (tmp_path / "small.onnx").read_bytes() == model_bytes(model) == canonical(complete_proto(model))
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_a_rewritten_external_model_is_a_pair_that_runs(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    model = _factorized(load_model(tmp_path / "in.onnx"))
    with stage_model(model, tmp_path / "small.onnx") as staged:
        staged_output = _run(staged.path)
        staged.commit()
    (data,) = tmp_path.glob("small.*.data")
    assert staged.file_bytes == (tmp_path / "small.onnx").stat().st_size + data.stat().st_size
    onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
    assert np.array_equal(_run(tmp_path / "small.onnx"), staged_output)
    reloaded = load_model(tmp_path / "small.onnx")
    assert reloaded.external
    assert canonical(complete_proto(reloaded)) == canonical(complete_proto(model))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _save(_factorized(load_model(tmp_path / "in.onnx")), tmp_path / name / "small.onnx")
        written.append(_listing(tmp_path / name))
    assert written[0] == written[1]
    assert len(written[0]) == 2


def test_data_that_is_shared_is_written_once(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    proto = onnx.load(tmp_path / "in.onnx", load_external_data=False)
    tied = proto.graph.initializer.add()
    tied.CopyFrom(proto.graph.initializer[0])
    tied.name = "tied"
    model = load_model(proto, base_dir=tmp_path)
    rewritten = copy.deepcopy(model.skeleton)
    rewritten.graph.initializer.extend(new_tensor_proto(n, "float32", (64, 64), "one") for n in ("new", "again"))
    model = model.with_rewrite(rewritten, {"one": lambda: np.eye(64, dtype=np.float32)})
    (tmp_path / "out").mkdir()
    _save(model, tmp_path / "out" / "m.onnx")
    (data,) = (tmp_path / "out").glob("*.data")
    assert data.stat().st_size == (tmp_path / "in.onnx.data").stat().st_size + 64 * 64 * 4
    completed = {
        t.name: nh.to_array(t) for t in complete_proto(load_model(tmp_path / "out" / "m.onnx")).graph.initializer
    }
    assert np.array_equal(completed["tied"], completed["first"])
    assert np.array_equal(completed["again"], np.eye(64))


def test_small_new_tensors_and_new_constants_stay_inline(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    model = load_model(tmp_path / "in.onnx")
    skeleton = copy.deepcopy(model.skeleton)
    skeleton.graph.initializer.append(new_tensor_proto("little", "float32", (5, 5), "little"))
    constant = new_tensor_proto("", "float32", (40, 40), "constant")
    skeleton.graph.node.append(onnx.helper.make_node("Constant", [], ["constant"], value=constant))
    provided = {"little": lambda: np.ones((5, 5), np.float32), "constant": lambda: np.ones((40, 40), np.float32)}
    proto = onnx.load(_save(model.with_rewrite(skeleton, provided), tmp_path / "out.onnx"), load_external_data=False)
    assert proto.graph.initializer[-1].raw_data == np.ones(25, np.float32).tobytes()
    assert proto.graph.node[-1].attribute[0].t.raw_data == np.ones(1600, np.float32).tobytes()


def test_what_does_not_fit_into_a_file_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = perceptron()
    original.graph.node.add(op_type="Constant", output=["c"]).attribute.add(
        name="value", type=onnx.AttributeProto.TENSOR, t=raw_tensor("", 1, LARGE, pattern(4 * LARGE))
    )
    original.graph.initializer.append(raw_tensor("wrong.length", 1, 3, pattern(4 * LARGE)))
    monkeypatch.setattr(staging, "INLINE_LIMIT", original.ByteSize() - 1)
    target = _save(load_model(original), tmp_path / "m.onnx")
    proto = onnx.load(target, load_external_data=False)
    assert [t.name for t in proto.graph.initializer if t.external_data] == ["first", "second"]
    assert canonical(complete_proto(load_model(target))) == canonical(original)
    monkeypatch.setattr(staging, "INLINE_LIMIT", original.ByteSize())
    assert _save(load_model(original), target, force=True).read_bytes() == canonical(original)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    monkeypatch.setattr(staging, "INLINE_LIMIT", 100)
    monkeypatch.setattr(staging, "PROTO_LIMIT", 5000)
    with pytest.raises(ModelError, match="that aren't initializers: expected at most 5000; turn its large Constant"):
        stage_model(load_model(original), tmp_path / "n.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_limits_of_models_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_onnx.model_io import assembly

    model = load_model(perceptron())
    monkeypatch.setattr(assembly, "PROTO_LIMIT", perceptron().ByteSize() - 1)
    for assemble in (model_bytes, complete_proto):
        with pytest.raises(ModelError, match=r"model 'perceptron' has \d+ bytes: expected at most \d+"):
            assemble(model)


def test_replacing_a_pair_removes_the_old_data(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    source = load_model(tmp_path / "in.onnx")
    target = tmp_path / "small.onnx"
    (tmp_path / "small.0123456789abcdef.data").write_bytes(b"a stranger's")
    _save(_factorized(source, 1.0), target)
    (first,) = set(tmp_path.glob("small.*.data")) - {tmp_path / "small.0123456789abcdef.data"}
    _save(_factorized(source, 1.0), target, force=True)
    assert first.exists()  # equal contents, equal name
    shutil.copy(target, tmp_path / "copy.onnx")
    _save(_factorized(source, 2.0), target, force=True)
    assert first.exists()  # another model beside it uses it
    (tmp_path / "copy.onnx").unlink()
    _save(_factorized(source, 1.0), target, force=True)
    _save(load_model(perceptron()), target, force=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["in.onnx", "in.onnx.data", "small.0123456789abcdef.data", "small.onnx"]


def test_a_data_file_that_the_input_needs_stays(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    target = _save(load_model(tmp_path / "in.onnx"), tmp_path / "small.onnx")
    target.rename(tmp_path / "renamed.bin")  # no .onnx: not looked at as a neighbour
    source = load_model(tmp_path / "renamed.bin")
    shutil.copy(tmp_path / "renamed.bin", target)
    _save(_factorized(source), target, force=True)
    assert canonical(complete_proto(load_model(tmp_path / "renamed.bin"))) == canonical(perceptron())
    assert len(list(tmp_path.glob("small.*.data"))) == 2


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    source = save_external(perceptron(), tmp_path / "in.onnx")
    (tmp_path / "there.onnx").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "alias.onnx").symlink_to(source)
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nothing")
    os.link(source, tmp_path / "hard.onnx")
    model = load_model(source)
    before = _listing(tmp_path)
    for target, force, reason in [
        (tmp_path / "there.onnx", False, "exists: expected a new path"),
        (tmp_path / "dangling.onnx", False, "exists: expected a new path"),
        (tmp_path / "folder", True, "is a directory"),
        (tmp_path / "missing" / "m.onnx", True, "is no directory: expected one to write into; create it first"),
        (tmp_path / "there.onnx" / "m.onnx", True, "is no directory"),
        (source, True, "is the input, which is never changed"),
        (tmp_path / "in.onnx.data", True, "is the input, which is never changed"),
        (tmp_path / "alias.onnx", True, "is the input, which is never changed"),
        (tmp_path / "hard.onnx", True, "is the input, which is never changed"),
        (tmp_path / ("x" * 300), True, "can't be written"),
        (Path("nul\0.onnx"), True, "is no usable path"),
        (Path("\ud800.onnx"), True, "is no usable path"),
        (Path("/proc/m.onnx"), True, "can't be written"),
    ]:
        with pytest.raises(OutputError) as caught:
            stage_model(model, target, force=force)
        assert reason in str(caught.value)
        assert caught.value.exit_code == 2
    assert _listing(tmp_path) == before
    assert check_target(model, tmp_path / "new.onnx") == tmp_path / "new.onnx"


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    staged = stage_model(load_model(tmp_path / "in.onnx"), tmp_path / "small.onnx")
    (tmp_path / "small.onnx").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="has appeared meanwhile"):
        staged.commit()
    assert (tmp_path / "small.onnx").read_bytes() == b"somebody else's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "in.onnx.data", "small.onnx"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert _save(load_model(perceptron()), tmp_path / "a.onnx").read_bytes() == canonical(perceptron())
    staged = stage_model(load_model(perceptron()), tmp_path / "b.onnx")
    (tmp_path / "b.onnx").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="has appeared meanwhile"):
        staged.commit()
    assert (tmp_path / "b.onnx").read_bytes() == b"somebody else's"


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    with stage_model(load_model(perceptron()), tmp_path / "a.onnx") as staged:
        assert staged.path.parent.name.startswith(f".a.onnx.{os.getpid()}-")
        assert staged.path.parent.name.endswith(".lowrank-tmp")
    assert list(tmp_path.iterdir()) == []
    staged.discard()
    with pytest.raises(OutputError, match="committed or discarded before"):
        staged.commit()
    with pytest.raises(RuntimeError, match="in the block"), stage_model(load_model(perceptron()), tmp_path / "a.onnx"):
        raise RuntimeError("in the block")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ModelError("no such weight"), KeyboardInterrupt(), MemoryError()])
def test_a_provider_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> np.ndarray:
        raise error

    model = _factorized(load_model(perceptron()))
    broken = model.with_rewrite(model.skeleton, {"first/right": fail})
    with pytest.raises(type(error)):
        stage_model(broken, tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutputError, match=r"needs \d+ bytes and .* has 10 left"):
        stage_model(_factorized(load_model(perceptron()), calls=calls), tmp_path / "small.onnx")
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_staging_external_data_needs_no_memory_for_it(tmp_path: Path) -> None:
    size = 200 << 20
    with (tmp_path / "w.bin").open("wb") as file:
        for number in range(size >> 20):
            file.write(pattern(1 << 20, number))
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[size // 4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(canonical(onnx.ModelProto(graph=onnx.GraphProto(name="g", initializer=[tensor]))))
    model = load_model(tmp_path / "m.onnx")
    before = psutil.Process().memory_info().rss
    staged: StagedModel = stage_model(model, tmp_path / "n.onnx")
    assert psutil.Process().memory_info().rss - before < 40 << 20
    staged.commit()
    (data,) = tmp_path.glob("n.*.data")
    assert data.read_bytes() == (tmp_path / "w.bin").read_bytes()
