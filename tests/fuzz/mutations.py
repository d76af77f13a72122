"""Ways to damage a model: as bytes, whatever they mean, and as a graph that still parses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import helper as h

from lowrank_onnx.model_io.tensors import find_tensors
from tests.fuzz.seeds import Seed

HOSTILE_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 10**12)
HOSTILE_TEXTS = (
    "",
    "a\0b",
    "\x1b[31mred\x1b[0m",
    "line\nbreak",
    "<script>alert(1)</script>",
    "../outside/secret.bin",
    "/etc/passwd",
    "link.bin",
    "linked/secret.bin",
    "C:\\windows\\win.ini",
    "sub/../weights.bin",
    "./weights.bin",
    "x" * 5000,
    "lowrank-onnx:0:0",
    "lowrank-onnx:new:w1",
    "*/_ORT_MEM_ADDR_/",
    "\u202egnp.exe",
    "weights.bin",
    "w1",
    "x",
    "y",
)
OPERATORS = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Transpose", "Reshape", "Cast", "Identity", "Constant", "If", "Loop"),
    *("Scan", "Einsum", "DequantizeLinear", "Squeeze", "Unsqueeze", "Mul", "FusedMatMul", "FusedGemm", "FusedConv"),
    *("Layer", "LSTM", "Gather", "QLinearMatMul", "Attention", "Nonsense"),
)
ATTRIBUTES = (
    *("group", "transA", "transB", "perm", "axis", "axes", "to", "equation", "kernel_shape", "pads", "strides"),
    *("dilations", "auto_pad", "value", "alpha", "block_size", "num_heads", "activation"),
)


def mutate(seed: Seed, rng: random.Random) -> Seed:
    """A damaged copy; which one depends on `rng` alone."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.25:
            seed = replace(seed, model=_damage_bytes(seed.model, rng))
        elif seed.files and rng.random() < 0.1:
            name = rng.choice(sorted(seed.files))
            seed = replace(seed, files={**seed.files, name: _damage_bytes(seed.files[name], rng)})
        else:
            seed = replace(seed, model=_damage_graph(seed.model, rng))
    return seed


def _damage_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    if not data:
        return rng.randbytes(rng.randrange(64))
    start = rng.randrange(len(data))
    # Most bytes are weights; the graph lies at both ends.
    if rng.random() < 0.5:
        start = min(start, rng.randrange(400)) if rng.random() < 0.5 else max(0, len(data) - 1 - rng.randrange(400))
    length = min(len(data) - start, rng.choice((1, 2, 4, 9, 64, 1000)))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[min(len(data) - 1, start + rng.randrange(32))] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            del data[start : start + length]
        case 3:
            data[start:start] = data[start : start + length]
        case 4:
            data[start : start + length] = rng.randbytes(length)
        case 5:
            data[start : start + length] = b"\xff" * rng.choice((1, 5, 9, 10, 11)) + b"\x01"
    return bytes(data)


def _damage_graph(content: bytes, rng: random.Random) -> bytes:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return _damage_bytes(content, rng)
    try:
        rng.choice(_GRAPH_MUTATIONS)(model, rng)
        serialized: bytes = model.SerializeToString()
    except (ValueError, TypeError, IndexError, EncodeError, DecodeError, RecursionError):
        return content  # a damage that this model has no place for
    return serialized


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _tensor(model: onnx.ModelProto, rng: random.Random) -> onnx.TensorProto:
    return rng.choice([found.tensor for found in find_tensors(model)])


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes = [node for graph in _graphs(model) for node in graph.node]
    chosen: onnx.NodeProto = rng.choice(nodes + [node for function in model.functions for node in function.node])
    return chosen


def _names(model: onnx.ModelProto) -> list[str]:
    names = [name for graph in _graphs(model) for node in graph.node for name in (*node.input, *node.output)]
    return names + [tensor.name for tensor in model.graph.initializer]


def _change_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = _tensor(model, rng).dims
    match rng.randrange(4):
        case 0:
            dims[rng.randrange(len(dims))] = rng.choice(HOSTILE_NUMBERS)
        case 1:
            dims.append(rng.choice(HOSTILE_NUMBERS))
        case 2:
            del dims[-1]
        case 3:
            dims[:] = rng.choices(HOSTILE_NUMBERS, k=rng.randrange(6))


def _declare_huge(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.dims[:] = rng.choice(([1 << 20, 1 << 20], [1 << 31, 1 << 31], [1 << 62], [46341, 46341], [1] * 300))
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")


def _change_data(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    match rng.randrange(5):
        case 0:
            tensor.data_type = rng.choice((*range(30), 1000, -1))
        case 1:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 2:
            tensor.raw_data += rng.randbytes(rng.choice((1, 4, 2000)))
        case 3:
            tensor.float_data.extend([float("nan"), float("inf")] * rng.randrange(40))
        case 4:
            tensor.raw_data = rng.choice((b"\xff", b"\x00", b"\x7f")) * len(tensor.raw_data)


def _change_external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = rng.choice((onnx.TensorProto.EXTERNAL, onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT))
    key = rng.choice(("location", "location", "offset", "length", "checksum", "mystery"))
    value = (
        rng.choice(HOSTILE_TEXTS) if key == "location" else str(rng.choice((*HOSTILE_NUMBERS, 10**30, "0x10", " 1")))
    )
    for entry in tensor.external_data:
        if entry.key == key and rng.random() < 0.8:
            entry.value = value
            return
    tensor.external_data.add(key=key, value=value)


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    """Give one thing a hostile name, here only or wherever it is named."""
    old, new = rng.choice(_names(model)), rng.choice(HOSTILE_TEXTS)
    everywhere = rng.random() < 0.7
    for graph in _graphs(model):
        for values in (graph.initializer, graph.input, graph.output, graph.value_info):
            for value in values:
                if value.name == old:
                    value.name = new
        for node in graph.node if everywhere else ():
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
    _node(model, rng).name = rng.choice(HOSTILE_TEXTS)


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """Make a node read, or write, any name of the model: circles, repeated names, missing inputs."""
    node = _node(model, rng)
    names = rng.choice((node.input, node.output))
    match rng.randrange(4):
        case 0:
            names[rng.randrange(len(names))] = rng.choice(_names(model))
        case 1:
            names.append(rng.choice(_names(model)))
        case 2:
            del names[rng.randrange(len(names))]
        case 3:
            node.input[0] = node.output[0]


def _repeat(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(model)))
    entries = rng.choice((graph.node, graph.initializer, graph.input, graph.output, model.functions))
    entries.append(rng.choice(list(entries)))


def _remove(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(model)))
    lists = (graph.node, graph.initializer, graph.input, graph.output, model.opset_import, model.functions)
    entries = rng.choice(lists)
    del entries[rng.randrange(len(entries))]


def _shuffle(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(model)))
    nodes = rng.sample(list(graph.node), len(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)


def _change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(OPERATORS)
    if rng.random() < 0.4:
        node.domain = rng.choice(("", "ai.onnx", "com.microsoft", "local", "a\nb"))
    if rng.random() < 0.1:
        node.overload = "other"


def _change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    name = rng.choice(ATTRIBUTES)
    values: Sequence[object] = (
        rng.choice(HOSTILE_NUMBERS),
        [rng.choice(HOSTILE_NUMBERS) for _ in range(rng.randrange(1, 5))],
        rng.choice((0.0, float("nan"), 1e38)),
        rng.choice((*HOSTILE_TEXTS, "ij,jk->ik", "...ij,jk", "SAME_UPPER", "i" * 1000)),
    )
    for index, attribute in reversed(list(enumerate(node.attribute))):
        if attribute.name == name and rng.random() < 0.9:
            del node.attribute[index]
    node.attribute.append(h.make_attribute(name, rng.choice(values)))
    if rng.random() < 0.1:
        node.attribute[-1].type = onnx.AttributeProto.AttributeType.ValueType(rng.randrange(15))
    if rng.random() < 0.1:
        node.attribute[-1].ref_attr_name = "other"


def _nest(model: onnx.ModelProto, rng: random.Random) -> None:
    """The whole graph inside of subgraphs."""
    for _ in range(rng.choice((1, 3, 10, 31, 33, 60))):
        inner = onnx.GraphProto()
        inner.CopyFrom(model.graph)
        node = h.make_node("If", ["yes"], ["y"], name=rng.choice(("if", "")), then_branch=inner)
        model.graph.Clear()
        model.graph.node.append(node)
        model.graph.output.append(h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))


def _change_versions(model: onnx.ModelProto, rng: random.Random) -> None:
    match rng.randrange(3):
        case 0:
            model.ir_version = rng.choice(HOSTILE_NUMBERS)
        case 1:
            model.opset_import[0].version = rng.choice(HOSTILE_NUMBERS)
        case 2:
            model.opset_import.add(domain=rng.choice(HOSTILE_TEXTS), version=rng.choice(HOSTILE_NUMBERS))


def _change_values(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(model)))
    value = rng.choice([*graph.input, *graph.output])
    match rng.randrange(4):
        case 0:
            value.type.tensor_type.elem_type = rng.choice((*range(30), 1000, -1))
        case 1:
            value.type.tensor_type.shape.dim.add(dim_value=rng.choice(HOSTILE_NUMBERS))
        case 2:
            value.type.tensor_type.shape.dim.add(dim_param=rng.choice(HOSTILE_TEXTS))
        case 3:
            value.type.Clear()


def _say_something(model: onnx.ModelProto, rng: random.Random) -> None:
    text = rng.choice(HOSTILE_TEXTS)
    model.doc_string = model.producer_name = model.graph.name = model.domain = text
    model.metadata_props.add(key=text, value=text)
    _node(model, rng).metadata_props.add(key="lowrank.tool", value=text)


_GRAPH_MUTATIONS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _change_dims,
    _change_dims,
    _declare_huge,
    _change_data,
    _change_data,
    _change_external,
    _change_external,
    _change_external,
    _rename,
    _rename,
    _rewire,
    _rewire,
    _repeat,
    _remove,
    _shuffle,
    _change_operator,
    _change_attribute,
    _change_attribute,
    _nest,
    _change_versions,
    _change_values,
    _say_something,
)
