"""Which sites sum over the outputs of another one, feature by feature as it wrote them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.passes.permutation import POOLING, UNARY
from lowrank_onnx.passes.residual import stored_constant
from lowrank_onnx.passes.weight_source import is_default
from lowrank_onnx.types import Site

_SHIFTING = frozenset(("Add", "Clip", "Max", "Min", "PRelu", "Sub"))
_SCALING = frozenset(("Div", "Mul"))
_FLATTENING = frozenset(("Flatten", "Reshape"))


def find_summing_sites(flow: Dataflow, site: Site, known: Iterable[Site]) -> tuple[Site, ...]:
    """The sites that all of a site's outputs end in; none where anything else reads them.

    On the way there may be functions of one element, shifts by constants, products with a single number or with other
    values, and after a convolution pooling and flattening: what leaves the features, and their weight, as they are.

    Parameters
    ----------
    known : all sites of the model.

    Returns
    -------
    Of each site, the first ``in / out`` rows of the matrix belong to the first feature of `site`, and so on.
    """
    if site.scope or site.shape.groups > 1:
        return ()
    readers: dict[tuple[int, str], Site] = {(one.node_index, one.input): one for one in known if not one.scope}
    found: dict[str, Site] = {}
    met, pending = set[str](), [site.output]
    while pending:
        value = pending.pop()
        if value in flow.outputs:
            return ()
        met.add(value)
        for index in flow.readers.get(value, ()):
            reader = readers.get((index, value))
            made = flow.node(index).output[0]
            if (
                reader is not None
                and reader.shape.groups == 1
                and reader.shape.in_features % site.shape.out_features == 0
            ):
                found[reader.name] = reader
            elif reader is not None or not _keeps_features(flow, flow.node(index), value, site.op_type == "Conv"):
                return ()
            elif made not in met:
                pending.append(made)
    return tuple(found.values())


def _keeps_features(flow: Dataflow, node: onnx.NodeProto, value: str, convolved: bool) -> bool:
    if not is_default(node, node.op_type) or len(node.output) != 1:
        return False
    others = [name for name in node.input if name and name != value]
    if node.op_type in UNARY or node.op_type == "Dropout":
        return bool(node.input[0] == value)
    if node.op_type in _SHIFTING:
        return all(name in flow.constants for name in others)
    if node.op_type in _SCALING:
        return all(name not in flow.constants or _is_number(flow, name) for name in others)
    return bool(convolved and node.input[0] == value and node.op_type in POOLING | _FLATTENING)


def _is_number(flow: Dataflow, name: str) -> bool:
    tensor = stored_constant(flow, name)
    return tensor is not None and all(size == 1 for size in tensor.dims)
