"""A model's graph without what it learned: names, operators, shapes and types, for a report of a problem.

The copy is made of what is known to be harmless, field by field: what this module doesn't name, a field of a later onnx
or an unknown one in the file, isn't in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

MOST_ENTRIES = 16
"""Integers and strings of an attribute beyond which its list is emptied: kernels and axes are short, tables are not."""

LONGEST_STRING = 64
"""Bytes of a string attribute beyond which it is emptied."""


def bare_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without any value of a tensor, list of floats, table, long string or text of metadata.

    Tensors keep name, shape and type, metadata its keys. The copy can be parsed and looked at, but not run. `model` is
    not changed.
    """
    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.producer_name, bare.producer_version = model.producer_name, model.producer_version
    bare.domain, bare.model_version = model.domain, model.model_version
    bare.opset_import.extend(model.opset_import)
    for entry in model.metadata_props:
        bare.metadata_props.add(key=entry.key)
    bare.graph.CopyFrom(_graph(model.graph))
    for function in model.functions:
        bare.functions.append(_function(function))
    return bare


def _function(function: onnx.FunctionProto) -> onnx.FunctionProto:
    bare = onnx.FunctionProto(name=function.name, domain=function.domain, overload=function.overload)
    bare.input.extend(function.input)
    bare.output.extend(function.output)
    bare.attribute.extend(function.attribute)
    bare.attribute_proto.extend(map(_attribute, function.attribute_proto))
    bare.opset_import.extend(function.opset_import)
    bare.node.extend(map(_node, function.node))
    bare.value_info.extend(_values(function.value_info))
    return bare


def _graph(graph: onnx.GraphProto) -> onnx.GraphProto:
    bare = onnx.GraphProto(name=graph.name)
    bare.input.extend(_values(graph.input))
    bare.output.extend(_values(graph.output))
    bare.value_info.extend(_values(graph.value_info))
    bare.initializer.extend(map(_tensor, graph.initializer))
    bare.sparse_initializer.extend(map(_sparse, graph.sparse_initializer))
    bare.node.extend(map(_node, graph.node))
    return bare


def _values(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [onnx.ValueInfoProto(name=value.name, type=value.type) for value in values]


def _tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _sparse(tensor: onnx.SparseTensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=_tensor(tensor.values), indices=_tensor(tensor.indices), dims=tensor.dims)


def _node(node: onnx.NodeProto) -> onnx.NodeProto:
    bare = onnx.NodeProto(name=node.name, op_type=node.op_type, domain=node.domain, overload=node.overload)
    bare.input.extend(node.input)
    bare.output.extend(node.output)
    bare.attribute.extend(_attribute(one, constant=node.op_type == "Constant") for one in node.attribute)
    return bare


def _attribute(attribute: onnx.AttributeProto, *, constant: bool = False) -> onnx.AttributeProto:
    """What an attribute is, and its value where that configures the node; those of a Constant are a tensor's."""
    bare = onnx.AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name=attribute.ref_attr_name)
    if attribute.HasField("t"):
        bare.t.CopyFrom(_tensor(attribute.t))
    bare.tensors.extend(map(_tensor, attribute.tensors))
    if attribute.HasField("sparse_tensor"):
        bare.sparse_tensor.CopyFrom(_sparse(attribute.sparse_tensor))
    bare.sparse_tensors.extend(map(_sparse, attribute.sparse_tensors))
    if attribute.HasField("g"):
        bare.g.CopyFrom(_graph(attribute.g))
    bare.graphs.extend(map(_graph, attribute.graphs))
    if attribute.HasField("tp"):
        bare.tp.CopyFrom(attribute.tp)
    bare.type_protos.extend(attribute.type_protos)
    if constant:
        return bare
    for field in ("i", "f", "s"):
        if attribute.HasField(field) and not (field == "s" and len(attribute.s) > LONGEST_STRING):
            setattr(bare, field, getattr(attribute, field))
    if len(attribute.ints) <= MOST_ENTRIES:
        bare.ints.extend(attribute.ints)
    if len(attribute.strings) <= MOST_ENTRIES and all(len(text) <= LONGEST_STRING for text in attribute.strings):
        bare.strings.extend(attribute.strings)
    return bare
