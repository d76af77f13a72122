"""A copy of one graph that onnx-graphsurgeon can import.

Its importer crashes on strings that aren't UTF-8 and on element types that it doesn't know, and drops attributes of
other kinds with a warning. For subgraphs it copies the table of all outer tensors, once per subgraph, and calls itself.
So each graph is imported by itself, without what the importer doesn't know. The copy only serves matching and editing:
everything that isn't rewritten leaves from the original, so nothing is lost here.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

_ATTRIBUTE = onnx.AttributeProto
_IMPORTABLE = frozenset(
    {
        _ATTRIBUTE.FLOAT,
        _ATTRIBUTE.INT,
        _ATTRIBUTE.STRING,
        _ATTRIBUTE.TENSOR,
        _ATTRIBUTE.FLOATS,
        _ATTRIBUTE.INTS,
        _ATTRIBUTE.STRINGS,
    }
)
_TENSOR_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def importable_copy(graph: onnx.GraphProto) -> onnx.GraphProto:
    """A copy of `graph` without its subgraphs and without what onnx-graphsurgeon can't import.

    Left out are sparse initializers, the types of values that aren't dense tensors, attributes of other kinds, and the
    data of tensors; strings that aren't UTF-8 are escaped.
    """
    return onnx.GraphProto(
        node=[_importable_node(node) for node in graph.node],
        initializer=[_bare_tensor(tensor) for tensor in graph.initializer],
        input=_importable_values(graph.input),
        output=_importable_values(graph.output),
        value_info=_importable_values(graph.value_info),
    )


def _importable_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
    if node.HasField("domain"):
        copy.domain = node.domain
    for attribute in node.attribute:
        if attribute.type in _IMPORTABLE and not attribute.ref_attr_name:
            _copy_attribute(copy, attribute)
    return copy


def _copy_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    if attribute.type == _ATTRIBUTE.TENSOR:
        node.attribute.add(name=attribute.name, type=attribute.type, t=_bare_tensor(attribute.t))
        return
    copy = node.attribute.add()
    copy.CopyFrom(attribute)
    if attribute.type == _ATTRIBUTE.STRING:
        copy.s = _printable(attribute.s)
    elif attribute.type == _ATTRIBUTE.STRINGS:
        copy.strings[:] = [_printable(entry) for entry in attribute.strings]


def _bare_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    known = tensor.data_type in _TENSOR_TYPES
    data_type = tensor.data_type if known else onnx.TensorProto.FLOAT
    return onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=data_type)


def _importable_values(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [value if _is_dense_tensor(value) else onnx.ValueInfoProto(name=value.name) for value in values]


def _is_dense_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in _TENSOR_TYPES


def _printable(text: bytes) -> bytes:
    return text.decode("utf-8", "backslashreplace").encode()
