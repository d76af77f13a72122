"""What a rule is: one operator, when its node may be rewritten, and the nodes that are written then.

A rule is a record of four functions. `match` looks at one node and gives a `Site`, or a `Skipped` with its reason.
`layout` says how the two factors of a site are stored. `emit` writes the two nodes. `mid_dims` states the shape of the
activation between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from lowrank_onnx.passes.graph_view import ModelView, ScopeView
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, Source, StoredWeight, Unusable, WeightSources
from lowrank_onnx.types import Rearrangement, Site, Skipped

_AttributeType = onnx.AttributeProto.AttributeType


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node under examination, and what a rule may ask about it."""

    view: ModelView
    scope: ScopeView
    index: int
    name: str
    sources: WeightSources

    @property
    def proto(self) -> onnx.NodeProto:
        """The node in the original."""
        return self.scope.nodes[self.index]

    @property
    def node(self) -> Any:
        """The node in onnx-graphsurgeon's view."""
        return self.scope.graph.nodes[self.index]

    def source(self, slot: int) -> Source:
        """What stands behind input `slot`."""
        return self.sources.find(self.scope, self.proto.input[slot])

    def skip(self, reason: str, weight: Source | None = None) -> Skipped:
        """Leave the node alone."""
        parameters = weight.parameters if isinstance(weight, StoredWeight | Unusable) else 0
        return Skipped(self.name, self.proto.op_type, reason, parameters)

    def site(
        self, weight: StoredWeight, *, slot: int, to_matrices: Rearrangement, form: str, counted: str, features: int
    ) -> Site:
        """Report the node as one that can be rewritten; `slot` is the input that holds the activation."""
        return Site(
            name=self.name,
            scope=self.scope.scope,
            node_index=self.index,
            op_type=self.proto.op_type,
            weight=weight.ref,
            to_matrices=to_matrices,
            form=form,
            input=self.proto.input[slot],
            output=self.proto.output[0],
            counted=counted,
            counted_features=features,
        )


@dataclass(frozen=True, slots=True)
class FactorLayout:
    """How one factor is stored: its shape, and the way there from (groups, in, r) or (groups, r, out)."""

    shape: tuple[int, ...]
    arrangement: Rearrangement


@dataclass(frozen=True, slots=True)
class Parts:
    """What `emit` builds from: the replaced node's inputs, outputs and attributes, and the new tensors (all of gs)."""

    site: Site
    rank: int
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    attributes: Mapping[str, Any]
    left: Any
    right: Any
    mid: Any


@dataclass(frozen=True, slots=True)
class Rule:
    """The knowledge about one operator. See the module's docstring."""

    op_type: str
    match: Callable[[Candidate], Site | Skipped]
    layout: Callable[[onnx.NodeProto, Site, int], tuple[FactorLayout, FactorLayout]]
    emit: Callable[[Parts], tuple[Any, Any]]
    mid_dims: Callable[[ScopeView, Site, int], Dims | None]


def weight_operand(candidate: Candidate) -> tuple[int, StoredWeight] | Skipped:
    """Which of the two factors of a matrix product is a stored weight, or why none is; the other is an activation."""
    first, second = candidate.source(0), candidate.source(1)
    if isinstance(first, Activation) and isinstance(second, Activation):
        return candidate.skip("both inputs are activations")
    if not isinstance(first, Activation) and not isinstance(second, Activation):
        return candidate.skip("both inputs are constant: fold constants first")
    slot, weight = (1, second) if isinstance(first, Activation) else (0, first)
    if not isinstance(weight, StoredWeight):
        return candidate.skip(weight.reason, weight)
    return slot, weight


def node_problem(candidate: Candidate, *, inputs: tuple[int, int], attributes: Mapping[str, int]) -> str | None:
    """Why a node isn't a well-formed one of its operator, or None.

    Parameters
    ----------
    inputs : fewest and most inputs.
    attributes : the attributes that the rule knows how to carry over, with their kinds.
    """
    node = candidate.proto
    fewest, most = inputs
    if not fewest <= len(node.input) <= most or not all(node.input[:2]):
        numbers = f"{fewest}" if fewest == most else f"{fewest} or {most}"
        return f"it has inputs {list(node.input)}, {node.op_type} takes {numbers}"
    if len(node.output) != 1 or not node.output[0]:
        return f"it has outputs {list(node.output)}, {node.op_type} gives one"
    if node.overload or ("", node.op_type) in candidate.view.local_functions:
        return "a model-local function takes this operator's place"
    if len(node.device_configurations):
        return "it has device configurations, which can't be carried over to the new nodes"
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        return "an attribute is given twice"
    return next(
        (problem for attribute in node.attribute if (problem := _attribute_problem(attribute, attributes))), None
    )


def _attribute_problem(attribute: onnx.AttributeProto, known: Mapping[str, int]) -> str | None:
    if attribute.name not in known:
        return f"attribute '{attribute.name}' isn't one that this operator is known to have"
    if attribute.ref_attr_name:
        return f"attribute '{attribute.name}' refers to an attribute of a function"
    if attribute.type != known[attribute.name]:
        expected = _AttributeType.Name(_AttributeType.ValueType(known[attribute.name]))
        return f"attribute '{attribute.name}' has kind {attribute.type}, expected {expected}"
    return None


def too_small(in_features: int, out_features: int) -> str | None:
    """Why matrices of this size can't gain from factors at any rank, or None."""
    if min(in_features, out_features) > 1:
        return None
    return f"its matrices are {in_features} x {out_features}: factors wouldn't be smaller at any rank"


def kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A node's attributes as its successor carries them; an empty list says nothing, and can't be exported."""
    return {name: value for name, value in attributes.items() if value != []}


def weight_slot(node: onnx.NodeProto, site: Site) -> int:
    """Which input of a node with one weight and one activation is the weight: 0 or 1."""
    return 1 if node.input[0] == site.input else 0


def straight(split: tuple[int, ...], shape: tuple[int, ...]) -> FactorLayout:
    """Stored as `shape`, in the order of the factor's (groups, rows, columns) `split`."""
    return FactorLayout(shape, Rearrangement(split, (0, 1, 2), shape))


def transposed(split: tuple[int, ...], shape: tuple[int, ...]) -> FactorLayout:
    """Stored as `shape`, each group's matrix transposed; `split` is the factor's (groups, rows, columns)."""
    return FactorLayout(shape, Rearrangement(split, (0, 2, 1), shape))
