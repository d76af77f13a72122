from __future__ import annotations

import copy
import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper as nh
import psutil
import pytest

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io import Model, complete_proto, load_model, new_tensor_proto
from lowrank_onnx.model_io.tensors import find_tensors

from .builders import bfloat16, pattern, perceptron, rich_model, save_external


def _tensor(model: Model, name: str) -> onnx.TensorProto:
    return next(found.tensor for found in find_tensors(model.skeleton) if found.tensor.name == name)


@pytest.mark.parametrize("form", ["memory", "inline", "external"])
def test_every_tensor_reads_as_onnx_reads_it(tmp_path: Path, form: str) -> None:
    original = rich_model()
    path = tmp_path / "m.onnx"
    if form == "external":
        for sparse in (original.graph.sparse_initializer, original.graph.node[1].attribute):
            del sparse[-1:]  # onnx can't save them externally
        save_external(original, path)
    else:
        onnx.save_model(original, path)
    model = load_model(original if form == "memory" else path)
    pairs = list(zip(find_tensors(original), find_tensors(model.skeleton), strict=True))
    assert len(pairs) > 25
    for expected, found in pairs:
        values = model.store.array(found.tensor)
        reference = nh.to_array(expected.tensor)
        assert not values.flags.writeable
        assert (values.dtype, values.shape) == (reference.dtype, reference.shape)
        assert (
            values.tolist() == reference.tolist() if values.dtype == object else values.tobytes() == reference.tobytes()
        )
        if expected.tensor.raw_data:
            assert model.store.nbytes(found.tensor) == len(expected.tensor.raw_data)


def test_an_array_is_unmapped_when_it_is_dropped(tmp_path: Path) -> None:
    size = 200 << 20
    (tmp_path / "w.bin").write_bytes(bytes(24) + np.arange(size // 4, dtype=np.float32).tobytes())
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[size // 4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "24"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    onnx.save_model(onnx.ModelProto(graph=onnx.GraphProto(name="g", initializer=[tensor])), tmp_path / "m.onnx")
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_model(tmp_path / "m.onnx")
    loaded = process.memory_info().rss
    array = model.store.array(model.skeleton.graph.initializer[0])
    assert float(array[::1024].sum()) == float(np.arange(0, size // 4, 1024, dtype=np.float32).sum())
    part = array[5:7]
    read = process.memory_info().rss
    del array
    assert part.tolist() == [5.0, 6.0]  # a view keeps the map
    del part
    after = process.memory_info().rss
    assert loaded - before < 20 << 20
    assert read - before > 150 << 20
    assert after - before < 20 << 20


def test_new_tensors_come_from_their_providers() -> None:
    model = load_model(perceptron())
    calls: list[int] = []

    def provide() -> np.ndarray:
        calls.append(1)
        return bfloat16(np.arange(6, dtype=np.float32).reshape(2, 3))

    tensor = new_tensor_proto("w.left", "bfloat16", (2, 3), "w/left")
    skeleton = copy.deepcopy(model.skeleton)
    skeleton.graph.initializer.append(tensor)
    rewritten = model.with_rewrite(skeleton, {"w/left": provide})
    assert calls == []
    values = rewritten.store.array(tensor)
    assert values.dtype == np.dtype(ml_dtypes.bfloat16)
    assert values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not values.flags.writeable
    assert rewritten.store.nbytes(tensor) == 12
    again = rewritten.with_rewrite(skeleton, {"other": provide})
    completed = complete_proto(again).graph.initializer[-1]
    assert completed == nh.from_array(provide(), "w.left")
    assert complete_proto(model) == perceptron()


def test_a_providers_array_may_lie_in_memory_in_any_order() -> None:
    model = load_model(perceptron())
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = new_tensor_proto("t", "float32", (4, 3), "k")
    assert model.with_rewrite(model.skeleton, {"k": lambda: values.T}).store.array(tensor).tolist() == values.T.tolist()
    scalar = new_tensor_proto("s", "float32", (), "s")
    with_scalar = model.with_rewrite(model.skeleton, {"s": lambda: np.array(3, np.float32)})
    assert with_scalar.store.array(scalar).tolist() == 3.0


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.zeros((2, 3), ">f4")])
def test_a_provider_of_another_kind_of_array_is_refused(wrong: np.ndarray) -> None:
    tensor = new_tensor_proto("t", "float32", (2, 3), "k")
    model = load_model(perceptron()).with_rewrite(perceptron(), {"k": lambda: wrong})
    with pytest.raises(ModelError, match=r"new tensor 'k' was provided as .*: expected float32 \(2, 3\)"):
        model.store.array(tensor)


def test_placeholders_of_nobody_are_refused() -> None:
    model = load_model(perceptron())
    with pytest.raises(ModelError, match="has the placeholder 'lowrank-onnx:new:k': expected one of this model"):
        model.store.array(new_tensor_proto("t", "float32", (2, 3), "k"))
    other = load_model(perceptron())
    with pytest.raises(ModelError, match="expected one of this model"):
        model.store.array(_tensor(other, "first"))
    with pytest.raises(ModelError, match="expected one of this model"):
        load_model(model.skeleton)
    with pytest.raises(ModelError, match="new tensor 't' has dtype 'float33': expected one of ONNX"):
        new_tensor_proto("t", "float33", (1,), "k")


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    path = save_external(perceptron(), tmp_path / "m.onnx")
    model = load_model(path)
    data = tmp_path / "m.onnx.data"
    content = data.read_bytes()
    data.unlink()
    with pytest.raises(ModelError, match="can't be read any more"):
        model.store.array(_tensor(model, "first"))
    data.write_bytes(pattern(len(content)))
    with pytest.raises(ModelError, match="changed since it was loaded"):
        model.store.array(_tensor(model, "first"))
