"""A copy of a model in which chosen sites read weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from lowrank_onnx.passes.graph_view import view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.rule import weight_slot
from lowrank_onnx.types import Site


def redirect_weights(
    skeleton: onnx.ModelProto, sites: Sequence[tuple[Site, ...]], placeholder: Callable[[int, str], onnx.TensorProto]
) -> onnx.ModelProto:
    """Give the sites of each entry one new weight in place of the one they share; whatever else reads that keeps it.

    Nodes keep their positions. The new weights are initializers of the main graph, which inner graphs see too.

    Parameters
    ----------
    skeleton : the model in which the sites were found; it isn't changed.
    sites : for each weight, the sites that use it.
    placeholder : makes the initializer of the weight at a position in `sites`, with a name that no graph uses.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    view = view_model(copy)
    names = NewNames(view)
    for position, users in enumerate(sites):
        name = names.tensor(f"{users[0].weight.name}.replaced")
        copy.graph.initializer.append(placeholder(position, name))
        for site in users:
            node = view.scopes[site.scope].nodes[site.node_index]
            node.input[weight_slot(node, site)] = name
    return copy
