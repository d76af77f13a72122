"""Outputs of a weight in another order, which what reads them follows: a permutation that costs nothing at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from lowrank_onnx import passes
from lowrank_onnx.forms import Pivoted
from lowrank_onnx.model_io import Model, new_tensor_proto
from lowrank_onnx.passes.permutation import Reordered
from lowrank_onnx.types import Array, SiteChoice, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


@dataclass(slots=True)
class OutputOrders:
    """Tells which weights' outputs may come in another order; the graph is searched when that is first asked."""

    skeleton: onnx.ModelProto
    groups: Sequence[SharedWeight]
    _free: frozenset[WeightRef] | None = field(default=None, init=False)

    def may_change(self, weight: WeightRef) -> bool:
        """Whether all that reads the outputs of the weight's only site can follow them into any order."""
        if self._free is None:
            sites = [group.sites[0] for group in self.groups if len(group.sites) == 1]
            found = passes.find_followers(self.skeleton, sites)
            self._free = frozenset(site.weight for site in sites if not isinstance(found[site.name], str))
        return weight in self._free


def reorder_neighbours(model: Model, written: Sequence[SiteChoice]) -> Model:
    """A rewritten model in which what reads the outputs of reordered sites follows their order.

    Parameters
    ----------
    model : the model with all choices written in it; it isn't changed.
    written : the choices, of which those with an order of their outputs matter.
    """
    orders = {
        choice.site.name: choice.form.order
        for choice in written
        if isinstance(choice.form, Pivoted) and choice.form.order
    }
    if not orders:
        return model
    found = passes.find_followers(model.skeleton, [choice.site for choice in written if choice.site.name in orders])
    moved = []
    for name, followers in found.items():
        if isinstance(followers, str):
            raise ValueError(f"the outputs of '{name}' can't come in another order: {followers}")
        moved += [(follower, orders[name]) for follower in followers]
    skeleton, tensors = passes.reorder_tensors(model.skeleton, moved, _placeholder)
    reader = WeightReader(model, [tensor.tensor for tensor in tensors])
    return model.with_rewrite(skeleton, {one.key: partial(_reordered_values, one, reader) for one in tensors})


def _reordered_values(reordered: Reordered, reader: WeightReader) -> Array:
    values = reader.read(reordered.tensor)
    for axis, order in reordered.orders:
        values = np.take(values, order, axis)
    return values


def _placeholder(tensor: WeightRef, key: str) -> onnx.TensorProto:
    return new_tensor_proto(tensor.name, tensor.dtype, tensor.shape, key)
