"""Quantization by onnxruntime of models as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.narrow_models import quantize_dynamically
from lowrank_onnx.evaluate import open_session


def test_weights_of_constant_nodes_are_quantized(tmp_path: Path) -> None:
    """onnxruntime's quantizer wants an initializer, of a Conv and of a bias."""
    W = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W)),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.ones(16, np.float32))),
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, None, None]) for name, n in (("x", 8), ("y", 16))
    ]
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    quantize_dynamically(source, target)
    assert "ConvInteger" in {node.op_type for node in onnx.load(target).graph.node}
    feed = {"x": np.random.default_rng(1).standard_normal((1, 8, 6, 6)).astype(np.float32)}
    expected, found = (np.asarray(open_session(path).run(feed)["y"]) for path in (source, target))
    assert 0.0 < np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
