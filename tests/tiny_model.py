"""A small model with compressible weights, and feeds for it: what the end-to-end tests run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def _cosines(rows: int, columns: int) -> NDArray[np.float64]:
    """Orthonormal columns: the first vectors of the discrete cosine transform (DCT-II) after the constant one."""
    angles = np.outer(2 * np.arange(rows) + 1, np.arange(1, columns + 1)) * np.pi / (2 * rows)
    return np.asarray(np.cos(angles) * np.sqrt(2 / rows))


def decaying(rows: int, columns: int, decay: float) -> NDArray[np.float32]:
    """A weight whose singular values fall by the factor `decay` each; made without LAPACK, the same everywhere."""
    rank = min(rows, columns) - 1
    scales = np.sqrt(columns) * decay ** np.arange(rank)
    return np.asarray((_cosines(rows, rank) * scales) @ _cosines(columns, rank).T, np.float32)


def classifier(features: int = 128, hidden: int = 256, shape: tuple[int, ...] | None = None) -> onnx.ModelProto:
    """MatMul -> Relu -> Gemm -> Softmax over 10 classes, batch "n"; `shape` is that of one sample, flattened first."""
    sample = shape or (features,)
    weights = {"w0": decaying(features, hidden, 0.9), "w1": decaying(hidden, 10, 0.7)}
    weights["bias"] = np.zeros(10, np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flatten", axis=1),
        helper.make_node("MatMul", ["flat", "w0"], ["h"], name="fc0"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w1", "bias"], ["logits"], name="fc1"),
        helper.make_node("Softmax", ["logits"], ["y"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *sample])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_classifier(directory: Path, samples: int = 16) -> tuple[Path, Path]:
    """Write the model and an npz of feeds; return both paths."""
    model, feeds = directory / "model.onnx", directory / "feeds.npz"
    onnx.save(classifier(), model)
    np.savez(feeds, x=np.random.default_rng(6).standard_normal((samples, 128)).astype(np.float32))
    return model, feeds
