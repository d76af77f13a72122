"""Models for the tests of model files: one that holds every oddity, random ones, and one that runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
from google.protobuf.message import Message

from lowrank_onnx.model_io.wire import encode_varint
from lowrank_onnx.types import Array

LARGE = 1500
"""Elements of a tensor that is stripped in any type of a byte and more."""


def canonical(message: Message) -> bytes:
    """The deterministic serialization."""
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def unknown_field(number: int, payload: bytes) -> bytes:
    """A length-delimited field that no onnx knows."""
    return encode_varint(number << 3 | 2) + encode_varint(len(payload)) + payload


def raw_tensor(name: str, data_type: int, elements: int, raw: bytes, **fields: Any) -> onnx.TensorProto:
    """A tensor with raw data."""
    return onnx.TensorProto(name=name, data_type=data_type, dims=[elements], raw_data=raw, **fields)


def pattern(size: int, seed: int = 0) -> bytes:
    """`size` reproducible bytes."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def _every_type() -> list[onnx.TensorProto]:
    """Large tensors of every element type, raw and typed."""
    types = onnx.TensorProto.DataType
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
    bits |= {"FLOAT": 32, "DOUBLE": 64, "FLOAT16": 16, "BFLOAT16": 16, "INT64": 64, "COMPLEX128": 128, "BOOL": 8}
    bits |= {"FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8}
    known = dict(types.items())
    elements = 8 * LARGE + 1
    tensors = []
    for seed, (name, width) in enumerate(bits.items()):
        if name in known:
            raw = pattern(-(-elements * width // 8), seed)
            raw = bytes(b & 1 for b in raw) if name == "BOOL" else raw
            tensors.append(raw_tensor(f"raw.{name}", known[name], elements, raw))
    tensors.append(onnx.TensorProto(name="typed.int4", data_type=known["INT4"], dims=[3], int32_data=[0x21, 3]))
    tensors.append(onnx.TensorProto(name="typed.bf16", data_type=known["BFLOAT16"], dims=[2], int32_data=[16256, 0]))
    tensors.append(oh.make_tensor("typed.float", known["FLOAT"], [LARGE], np.arange(LARGE, dtype=np.float32)))
    tensors.append(onnx.TensorProto(name="strings", data_type=8, dims=[2], string_data=[b"a", b"\xc3\xa9"]))
    return tensors


def _subgraph(name: str, seed: int) -> onnx.GraphProto:
    graph = onnx.GraphProto(name=name)
    graph.initializer.append(raw_tensor(f"{name}.weight", 1, LARGE, pattern(4 * LARGE, seed)))
    graph.node.append(oh.make_node("Identity", [f"{name}.weight"], [f"{name}.out"], name=f"{name}.node"))
    graph.output.append(oh.make_tensor_value_info(f"{name}.out", 1, [LARGE]))
    return graph


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = raw_tensor(name, 1, LARGE, pattern(4 * LARGE, 5))
    indices = onnx.TensorProto(
        name=f"{name}.indices", data_type=7, dims=[LARGE], raw_data=np.arange(LARGE, dtype=np.int64).tobytes()
    )
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[2 * LARGE])


def rich_model() -> onnx.ModelProto:
    """A model that holds each construct a round trip could lose; it isn't meant to run."""
    graph = onnx.GraphProto(name="rich", doc_string="graph doc")
    graph.initializer.extend(_every_type())
    graph.initializer.append(raw_tensor("explicit.default", 1, LARGE, pattern(4 * LARGE), data_location=0))
    graph.initializer.append(raw_tensor("documented", 1, LARGE, pattern(4 * LARGE), doc_string="é"))
    graph.initializer[-1].metadata_props.add(key="tensor key", value="tensor value")
    graph.initializer.append(raw_tensor("small", 1, 2, pattern(8)))
    graph.initializer.append(raw_tensor("empty", 1, 0, b""))
    graph.initializer.append(raw_tensor("also.an.input", 1, LARGE, pattern(4 * LARGE, 1)))
    graph.sparse_initializer.append(_sparse("sparse"))
    graph.input.append(oh.make_tensor_value_info("also.an.input", 1, [LARGE]))
    graph.input.append(oh.make_value_info("optional", oh.make_optional_type_proto(oh.make_tensor_type_proto(1, ["n"]))))
    graph.input.append(oh.make_value_info("map", oh.make_map_type_proto(8, oh.make_tensor_type_proto(1, [1]))))
    graph.input[0].metadata_props.add(key="value key", value="value value")
    graph.value_info.append(oh.make_tensor_value_info("unused", 10, None))
    annotation = graph.quantization_annotation.add(tensor_name="small")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="typed.float")
    graph.metadata_props.add(key="graph key", value="graph value")

    node = oh.make_node("If", ["condition"], ["chosen"], name="branch", doc_string="node doc", overload="o")
    node.attribute.append(oh.make_attribute("then_branch", _subgraph("then", 11)))
    node.attribute.append(oh.make_attribute("else_branch", _subgraph("else", 12)))
    node.metadata_props.add(key="node key", value="node value")
    graph.node.append(node)
    odd = oh.make_node("Odd", [], ["odd"], domain="custom")
    odd.attribute.append(oh.make_attribute("bytes", b"\xff\xfe\x00"))
    odd.attribute.append(oh.make_attribute("value", raw_tensor("constant", 1, LARGE, pattern(4 * LARGE, 13))))
    odd.attribute.append(
        oh.make_attribute("tensors", [raw_tensor(f"t{i}", 1, LARGE, pattern(4 * LARGE, i)) for i in (1, 2)])
    )
    odd.attribute.append(oh.make_attribute("graphs", [_subgraph("first", 14), _subgraph("second", 15)]))
    odd.attribute.append(oh.make_attribute("sparse", _sparse("attribute.sparse")))
    odd.attribute.append(oh.make_attribute("type", oh.make_tensor_type_proto(1, [3])))
    odd.attribute.append(onnx.AttributeProto(name="unset", type=onnx.AttributeProto.INT, ref_attr_name="outer"))
    graph.node.append(odd)

    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21), oh.make_opsetid("custom", 3)])
    model.ir_version, model.producer_name, model.domain, model.model_version, model.doc_string = 10, "p", "d", 7, "doc"
    model.metadata_props.add(key="model key", value="model value")
    for overload in ("", "other"):
        function = oh.make_function("custom", "F", ["x"], ["y"], [], [oh.make_opsetid("", 21)], overload=overload)
        function.node.append(
            oh.make_node("Constant", [], ["y"], value=raw_tensor("f", 1, LARGE, pattern(4 * LARGE, 16)))
        )
        default = oh.make_attribute("default", raw_tensor("g", 1, LARGE, pattern(4 * LARGE, 17)))
        function.attribute_proto.append(default)
        function.metadata_props.add(key="function key", value="function value")
        model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(_subgraph("initialization", 18))
    training.algorithm.CopyFrom(_subgraph("algorithm", 19))

    odd_bytes = model.graph.SerializeToString() + unknown_field(4000, b"unknown in the graph" * 100)
    model.graph.ParseFromString(odd_bytes)
    tensor = model.graph.initializer[0]
    tensor.ParseFromString(tensor.SerializeToString() + unknown_field(4001, b"unknown in a tensor"))
    model.ParseFromString(model.SerializeToString() + unknown_field(4002, b"unknown in the model"))
    return model


def random_message(message_type: type[Message], rng: random.Random, depth: int = 0) -> Any:
    """A message with random fields of all kinds, nested up to 7 deep, its bytes from none to 3,000."""
    message: Any = message_type()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3 + 0.07 * depth or (field.message_type and depth >= 7):
            continue
        values = getattr(message, field.name)
        for _ in range(rng.choice((1, 1, 2)) if field.is_repeated else 1):
            if field.message_type:
                child = values.add() if field.is_repeated else values
                child.CopyFrom(random_message(type(child), rng, depth + 1))
                continue
            value = _random_scalar(field, rng)
            if field.is_repeated:
                values.append(value)
            else:
                setattr(message, field.name, value)
    if rng.random() < 0.2:
        message.MergeFromString(unknown_field(rng.choice((4000, 5000)), pattern(rng.choice((3, 2000)))))
    return message


def _random_scalar(field: Any, rng: random.Random) -> Any:
    if field.enum_type:
        return rng.choice(field.enum_type.values).number
    if field.cpp_type == field.CPPTYPE_STRING:
        raw = rng.randbytes(rng.choice((0, 5, 1023, 1024, 3000)))
        return raw if field.type == field.TYPE_BYTES else "ü" * (len(raw) % 50)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return float(np.float32(rng.uniform(-9, 9)))
    return rng.randrange(0, 2**31)


def perceptron(width: int = 64, seed: int = 0, dtype: Any = np.float32) -> onnx.ModelProto:
    """A model that runs: two MatMuls with an Add and a ReLU."""
    rng = np.random.default_rng(seed)
    weights = {
        "first": rng.standard_normal((width, width)).astype(dtype),
        "bias": rng.standard_normal(width).astype(dtype),
        "second": rng.standard_normal((width, width)).astype(dtype),
    }
    element = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        oh.make_node("MatMul", ["x", "first"], ["a"]),
        oh.make_node("Add", ["a", "bias"], ["b"]),
        oh.make_node("Relu", ["b"], ["c"]),
        oh.make_node("MatMul", ["c", "second"], ["y"]),
    ]
    graph = oh.make_graph(
        nodes,
        "perceptron",
        [oh.make_tensor_value_info("x", element, ["n", width])],
        [oh.make_tensor_value_info("y", element, ["n", width])],
        [nh.from_array(value, name) for name, value in weights.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)


def save_external(model: onnx.ModelProto, path: Path, *, threshold: int = 256) -> Path:
    """Save with external data in `<name>.data` beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=threshold)
    return path


def bfloat16(values: Array) -> Array:
    """Values as bfloat16."""
    return values.astype(ml_dtypes.bfloat16)
