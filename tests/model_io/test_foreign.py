from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io import complete_proto, load_model
from tests.tiny_model import classifier


def _save_external(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    onnx.save(classifier(), path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    return path


def _weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def test_an_ir_model_has_the_weights_that_it_has() -> None:
    loaded = load_model(ir.from_proto(classifier()))
    assert _weights(complete_proto(loaded)) == _weights(classifier())


def test_external_data_of_an_ir_model_is_found_where_its_tensors_say(tmp_path: Path) -> None:
    path = _save_external(tmp_path, "m.onnx")
    loaded = load_model(ir.load(path))
    assert loaded.external
    assert _weights(complete_proto(loaded)) == _weights(classifier())


def test_external_data_in_several_directories_is_refused(tmp_path: Path) -> None:
    first, second = (ir.load(_save_external(tmp_path / name, "m.onnx")) for name in "ab")
    first.graph.initializers["w0"].const_value = second.graph.initializers["w0"].const_value
    with pytest.raises(ModelError, match=r"external data in 2 directories .*expected one; save the model"):
        load_model(first)


def test_what_onnx_ir_cannot_export_is_one_line() -> None:
    model = ir.from_proto(classifier())
    model.graph.initializers["w0"].const_value = ir.LazyTensor(
        lambda: ir.tensor(np.zeros(1 // 0)), ir.DataType.FLOAT, shape=ir.Shape([128, 256])
    )
    with pytest.raises(ModelError, match=r"onnx-ir can't export this model \(\w+: .*give the ModelProto"):
        load_model(model)


def test_parts_of_models_are_no_models() -> None:
    with pytest.raises(ModelError, match="a Graph is no model: expected a path"):
        load_model(ir.from_proto(classifier()).graph)
