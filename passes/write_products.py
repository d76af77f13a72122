"""Write one node, with the product of their weights, where two linear nodes met (`products`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from lowrank_onnx.passes.graph_view import ModelView, view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.products import SITE_ENTRY, Product
from lowrank_onnx.passes.splice import ScopeEdit, splice
from lowrank_onnx.passes.value_types import tensor_value_info
from lowrank_onnx.types import Rearrangement, WeightRef

ABSORBED_ENTRY = "lowrank.absorbed"
"""The metadata by which a node says which nodes it stands for."""


@dataclass(frozen=True, slots=True)
class ProductTensor:
    """An initializer to be made: ``rows @ columns + added``, brought into its layout.

    Attributes
    ----------
    name, dtype, shape : of the initializer; the name is its key too.
    rows, columns : stored weights or a bias; the arrangements lead from there to (1, n, m) and (1, m, out).
    added : a stored vector (out,), or None.
    arrangement : from (1, n, out) to the stored layout.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: WeightRef
    to_rows: Rearrangement
    columns: WeightRef
    to_columns: Rearrangement
    added: WeightRef | None
    arrangement: Rearrangement


def write_products(
    skeleton: onnx.ModelProto,
    products: Sequence[Product],
    placeholder: Callable[[ProductTensor], onnx.TensorProto],
) -> tuple[onnx.ModelProto, tuple[ProductTensor, ...]]:
    """A copy of the model with one node for each product, and the tensors that these need.

    Parameters
    ----------
    skeleton : the model in which the products were found; it isn't changed.
    products : no node may be in two of them.
    placeholder : makes the initializer of a new tensor; no values are computed here.
    """
    view = view_model(skeleton)
    names = NewNames(view)
    edit, made = ScopeEdit(), list[ProductTensor]()
    for product in products:
        tensors = [replace(tensor, name=names.tensor(tensor.name)) for tensor in product_tensors(product)]
        edit.replaced[product.second.node_index] = tuple(_nodes(view, names, edit, product, tensors))
        edit.initializers.extend(placeholder(tensor) for tensor in tensors)
        if view.inputs_hold_initializers:
            edit.inputs.extend(tensor_value_info(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)
        _remove(view, edit, product)
        made += tensors
    return splice(skeleton, {(): edit}), tuple(made)


def product_tensors(product: Product) -> Iterator[ProductTensor]:
    """The weight, and the bias where the first one's goes through the second weight; the names are as wanted."""
    first, second = product.first, product.second
    dtype = first.weight.dtype
    middle, last = second.shape.in_features, second.shape.out_features
    size = product.shape.in_features
    if first.op_type == "Conv":
        shape = (last, *first.weight.shape[1:])
        layout = Rearrangement((1, size, last), (0, 2, 1), shape)
    else:
        shape = (size, last)
        layout = Rearrangement((1, size, last), (0, 1, 2), shape)
    name = f"{first.weight.name}.product"
    columns, to_columns = second.weight, second.to_matrices
    yield ProductTensor(name, dtype, shape, first.weight, first.to_matrices, columns, to_columns, None, layout)
    if product.first_bias is not None:
        row = Rearrangement((1, 1, middle), (0, 1, 2), (1, 1, middle))
        vector = Rearrangement((1, 1, last), (0, 1, 2), (last,))
        name = f"{product.first_bias.name}.product"
        added = product.second_bias
        yield ProductTensor(name, dtype, (last,), product.first_bias, row, columns, to_columns, added, vector)


def _nodes(
    view: ModelView, names: NewNames, edit: ScopeEdit, product: Product, tensors: Sequence[ProductTensor]
) -> Iterator[onnx.NodeProto]:
    scope = view.scopes[()]
    first, second = scope.nodes[product.first.node_index], scope.nodes[product.second.node_index]
    weight, *new_bias = (tensor.name for tensor in tensors)
    bias = new_bias or ([] if product.second_bias is None else [product.second_bias.name])
    output = product.second.output
    node = onnx.NodeProto()
    node.CopyFrom(first)
    del node.input[:], node.output[:], node.metadata_props[:]
    node.input.extend((first.input[0], weight))
    node.output.append(output)
    node.name = names.node("+".join(part for part in (first.name, second.name) if part))
    _carry_metadata(node, first, second, product)
    _drop_attributes(node, ("transB", "beta"))
    if first.op_type == second.op_type == "MatMul":
        if bias:
            middle = names.tensor(f"{output}.mid")
            node.output[0] = middle
            edit.value_info.append(tensor_value_info(middle, product.first.weight.dtype, scope.dims(output)))
            yield node
            yield onnx.helper.make_node("Add", [middle, bias[0]], [output], name=names.node(f"{node.name}.bias"))
            return
    elif first.op_type != "Conv":
        node.op_type = "Gemm"
    node.input.extend(bias)
    yield node


def _drop_attributes(node: onnx.NodeProto, names: Sequence[str]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _carry_metadata(node: onnx.NodeProto, first: onnx.NodeProto, second: onnx.NodeProto, product: Product) -> None:
    """The entries of both, the first's where they differ, and which nodes and sites they were."""
    entries = {entry.key: entry.value for one in (second, first) for entry in one.metadata_props}
    absorbed = f"{product.first.name}+{product.second.name}"
    entries[ABSORBED_ENTRY] = absorbed
    if SITE_ENTRY in entries:
        entries[SITE_ENTRY] = absorbed
    for key, value in entries.items():
        node.metadata_props.add(key=key, value=value)


def _remove(view: ModelView, edit: ScopeEdit, product: Product) -> None:
    """What nothing reads any more: the first node, the addition, the two weights, the biases that went into the new."""
    scope = view.scopes[()]
    for index in (product.first.node_index, product.addition):
        if index is not None:
            edit.removed.add(index)
            edit.gone.update(scope.nodes[index].output)
    biases = (product.first_bias, product.second_bias) if product.first_bias is not None else ()
    for ref in (product.first.weight, product.second.weight, *biases):
        if ref is None or len(view.uses[ref.scope, ref.name]) > 1:
            continue
        edit.gone.add(ref.name)
        if ref.storage == "constant":
            edit.removed.add(scope.producers[ref.name])
