"""The small models that are damaged: one for each way in which a model can be built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from lowrank_onnx.types import Array, numpy_dtype

IN, HIDDEN = 24, 32
SMALLEST_EXTERNAL = 64


@dataclass(frozen=True)
class Seed:
    """A model, and the data files that lie beside it."""

    model: bytes
    files: dict[str, bytes]


def _weight(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def _value(name: str, shape: Sequence[int | str | None] | None, data_type: int = T.FLOAT) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, data_type, shape)


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    data_type: int = T.FLOAT,
    shape: Sequence[int | str | None] = ("rows", IN),
    opset: int = 21,
    ir_version: int = 10,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs, outputs = [_value("x", shape, data_type)], [_value("y", None, data_type)]
    if ir_version < 4:
        inputs += [_value(tensor.name, list(tensor.dims), tensor.data_type) for tensor in tensors]
    opsets = [h.make_opsetid(domain, version) for domain, version in (("", opset), ("com.microsoft", 1), ("local", 1))]
    graph = h.make_graph(list(nodes), "main", inputs, outputs, tensors)
    return h.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def perceptron() -> onnx.ModelProto:
    nodes = [
        h.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        h.make_node("Relu", ["a"], ["b"]),
        h.make_node("Gemm", ["b", "w2", "c"], ["y"], name="last", transB=1, alpha=0.5),
    ]
    return _model(nodes, {"w1": _weight(IN, HIDDEN), "w2": _weight(IN, HIDDEN, seed=1), "c": _weight(IN)})


def convolutions() -> onnx.ModelProto:
    nodes = [
        h.make_node("Conv", ["x", "k1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        h.make_node("Conv", ["a", "k2", "b"], ["c"], group=2, kernel_shape=[3, 3]),
        h.make_node("ConvTranspose", ["c", "k3"], ["y"], dilations=[1, 1]),
    ]
    weights = {"k1": _weight(16, 4, 3, 3), "k2": _weight(16, 8, 3, 3, seed=1), "b": _weight(16)}
    return _model(nodes, weights | {"k3": _weight(16, 8, 3, 3, seed=2)}, shape=[1, 4, 9, 9])


def constants() -> onnx.ModelProto:
    held = [numpy_helper.from_array(_weight(IN, IN, seed=seed), "") for seed in range(2)]
    nodes = [
        h.make_node("Constant", [], ["w1"], value=held[0]),
        h.make_node("Identity", ["w1"], ["w1_copy"]),
        h.make_node("Constant", [], ["w2"], value=held[1]),
        h.make_node("MatMul", ["x", "w1_copy"], ["a"]),
        h.make_node("MatMul", ["w2", "t"], ["b"]),
        h.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
        h.make_node("Transpose", ["b"], ["y"], perm=[1, 0]),
    ]
    nodes[4], nodes[5] = nodes[5], nodes[4]
    return _model(nodes, {})


def subgraphs() -> onnx.ModelProto:
    def branch(name: str, seed: int) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(_weight(IN, IN, seed=seed), f"{name}.w")
        nodes = [
            h.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.a"]),
            h.make_node("MatMul", [f"{name}.a", "outer"], [f"{name}.y"]),
        ]
        return h.make_graph(nodes, name, [], [_value(f"{name}.y", None)], [tensor])

    nodes = [
        h.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True), "")),
        h.make_node("If", ["yes"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 2)),
    ]
    return _model(nodes, {"outer": _weight(IN, IN)})


def quantized() -> onnx.ModelProto:
    values = np.random.default_rng(0).integers(-128, 128, (IN, IN)).astype(np.int8)
    nodes = [
        h.make_node("Cast", ["q"], ["f"], to=T.FLOAT),
        h.make_node("Mul", ["f", "s"], ["w1"]),
        h.make_node("MatMul", ["x", "w1"], ["a"]),
        h.make_node("DequantizeLinear", ["q", "s2", "z2"], ["w2"], axis=1),
        h.make_node("MatMul", ["a", "w2"], ["b"]),
        h.make_node("Transpose", ["w3"], ["w3t"], perm=[1, 0]),
        h.make_node("Reshape", ["w3t", "shape"], ["w3r"]),
        h.make_node("MatMul", ["b", "w3r"], ["y"]),
    ]
    weights: dict[str, Array] = {"q": values, "s": np.array(0.01, np.float32), "w3": _weight(IN, IN, seed=3)}
    weights |= {"s2": _weight(IN, seed=2), "z2": np.zeros(IN, np.int8), "shape": np.array([IN, -1])}
    return _model(nodes, weights)


def narrow() -> onnx.ModelProto:
    nodes = [h.make_node("MatMul", ["x", "w1"], ["a"]), h.make_node("Gemm", ["a", "w2"], ["y"], transB=1)]
    half = {"w1": _weight(IN, HIDDEN, dtype="float16"), "w2": _weight(IN, HIDDEN, seed=1, dtype="float16")}
    return _model(nodes, half, data_type=T.FLOAT16)


def old() -> onnx.ModelProto:
    nodes = [h.make_node("MatMul", ["x", "w1"], ["a"]), h.make_node("Gemm", ["a", "w2", "c"], ["y"], broadcast=1)]
    weights = {"w1": _weight(IN, HIDDEN), "w2": _weight(HIDDEN, IN, seed=1), "c": _weight(IN)}
    return _model(nodes, weights, opset=6, ir_version=3)


def functions() -> onnx.ModelProto:
    """Calls of a function with a weight of its own and one of the call, directly and through another function."""
    gemm = h.make_node("Gemm", ["c", "k"], ["e"], name="fc")
    gemm.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="scale")
    stored = h.make_node("Constant", [], ["k"], value=numpy_helper.from_array(_weight(IN, IN, seed=4), "k"))
    opsets = [h.make_opsetid("", 21), h.make_opsetid("local", 1)]
    body = [h.make_node("MatMul", ["a", "b"], ["c"]), stored, gemm, h.make_node("Relu", ["e"], ["d"])]
    layer = h.make_function("local", "Layer", ["a", "b"], ["d"], body, opsets, ["scale"])
    calls = [
        h.make_node("Layer", ["a", "b"], ["m"], domain="local", scale=0.5),
        h.make_node("Layer", ["m", "b"], ["d"], domain="local"),
    ]
    twice = h.make_function("local", "Twice", ["a", "b"], ["d"], calls, opsets)
    nodes = [
        h.make_node("Layer", ["x", "w1"], ["f"], domain="local", scale=2.0),
        h.make_node("Twice", ["f", "w2"], ["a"], domain="local"),
        h.make_node("FusedMatMul", ["a", "w2"], ["b"], domain="com.microsoft", transB=1),
        h.make_node("Einsum", ["b", "w3"], ["y"], equation="ij,jk->ik"),
    ]
    weights = {f"w{index}": _weight(IN, IN, seed=index) for index in (1, 2, 3)}
    return _model(nodes, weights, functions=[layer, twice])


def shared() -> onnx.ModelProto:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("MatMul", ["a", "w"], ["b"]),
        h.make_node("Gather", ["table", "i"], ["g"]),
        h.make_node("Add", ["b", "g"], ["y"]),
    ]
    return _model(nodes, {"w": _weight(IN, IN), "table": _weight(50, IN), "i": np.array([3])})


def tied() -> onnx.ModelProto:
    nodes = [
        h.make_node("Gather", ["table", "i"], ["e"]),
        h.make_node("Add", ["x", "e"], ["a"]),
        h.make_node("Gemm", ["a", "table"], ["b"], transB=1),
        h.make_node("MatMul", ["b", "table"], ["c"]),
        h.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        h.make_node("MatMul", ["c", "t"], ["d"]),
        h.make_node("Einsum", ["d", "table"], ["y"], equation="nv,vd->nd"),
    ]
    model = _model(nodes, {"table": _weight(50, IN)})
    model.graph.input.append(h.make_tensor_value_info("i", T.INT64, [1]))
    return model


_BUILDERS: tuple[Callable[[], onnx.ModelProto], ...] = (
    perceptron,
    convolutions,
    constants,
    subgraphs,
    quantized,
    narrow,
    old,
    functions,
    shared,
    tied,
)


def _externalised(model: onnx.ModelProto) -> Seed:
    """The model with its tensors in two data files."""
    files = {"weights.bin": b"", "sub/more.bin": b""}
    for index, tensor in enumerate(model.graph.initializer):
        if len(tensor.raw_data) < SMALLEST_EXTERNAL:
            continue
        name = ("weights.bin", "sub/more.bin")[index % 2]
        entries = {"location": name, "offset": str(len(files[name])), "length": str(len(tensor.raw_data))}
        files[name] += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = T.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return Seed(model.SerializeToString(), files)


def make_seeds() -> tuple[Seed, ...]:
    """Every model, as one file and with external data."""
    inline = [Seed(build().SerializeToString(), {}) for build in _BUILDERS]
    return (*inline, *(_externalised(build()) for build in _BUILDERS))


def write_seed(seed: Seed, directory: Path) -> Path:
    """Write a model and its files; returns the model's path."""
    for name, content in seed.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = directory / "model.onnx"
    path.write_bytes(seed.model)
    return path
