"""What a rule is: one operator, when its node may be rewritten, and the nodes that are written then.

A rule is a function and a record of writers. `match` looks at one node and gives a `Site` with the forms in which it
can be written, a `Skipped` with its reason, or None where there is no weight to speak of. A `Writer` writes the site in
one of the forms: `layout` says how its new tensors are stored, `values` names the activations between its nodes and
states their shapes, `emit` makes the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx

from lowrank_onnx.forms import Form
from lowrank_onnx.passes.graph_view import ModelView, ScopeView, default_domain
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, Source, StoredWeight, Unusable, WeightSources
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped, WeightRef

NO_ATTRIBUTES: Mapping[str, int] = MappingProxyType({})
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

    @property
    def opset(self) -> int:
        """The version of the standard operators; 0 where the model imports none."""
        imports = self.view.skeleton.opset_import
        return max((entry.version for entry in imports if default_domain(entry.domain) == ""), default=0)

    def source(self, slot: int) -> Source:
        """What stands behind input `slot`."""
        return self.sources.find(self.scope, self.proto.input[slot])

    def skip(self, reason: str, weight: Source | None = None) -> Skipped:
        """Leave the node alone."""
        parameters = weight.parameters if isinstance(weight, StoredWeight | Unusable) else 0
        return Skipped(self.name, self.proto.op_type, reason, parameters)

    def stored_bias(self, out_features: int) -> WeightRef | None:
        """The node's third input, where it is a stored vector (out,): one that a form can write anew."""
        if not self.has_bias:
            return None
        bias = self.source(2)
        return bias.ref if isinstance(bias, StoredWeight) and bias.ref.shape == (out_features,) else None

    @property
    def has_bias(self) -> bool:
        """Whether the node has a third input."""
        return len(self.proto.input) > 2 and bool(self.proto.input[2])

    def site(
        self,
        weight: StoredWeight,
        *,
        slot: int,
        to_matrices: Rearrangement,
        forms: Sequence[Form],
        counted: str,
        features: int,
        bias: WeightRef | None = None,
        shares: str | None = None,
    ) -> Site:
        """Report the node as one that can be rewritten; `slot` is the input that holds the activation."""
        return Site(
            name=self.name,
            scope=self.scope.scope,
            node_index=self.index,
            op_type=self.proto.op_type,
            weight=weight.ref,
            to_matrices=to_matrices,
            forms=tuple(forms),
            input=self.proto.input[slot],
            output=self.proto.output[0],
            counted=counted,
            counted_features=features,
            bias=bias,
            shares=shares,
        )


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """How one new tensor is stored: which part of the form it is, its shape, and the way there from the part's layout.

    With `bias`, it is what the form makes of the site's stored bias for one of the nodes.
    """

    part: str
    shape: tuple[int, ...]
    arrangement: Rearrangement
    bias: WeightRef | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What `emit` builds from: the replaced node's inputs, outputs and attributes, and what is new (all of gs).

    `tensors` are the new tensors by part, `values` the activations between the new nodes by the names that the writer
    gave them.
    """

    choice: SiteChoice
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def site(self) -> Site:
        """The site that is written."""
        return self.choice.site


@dataclass(frozen=True, slots=True)
class Writer:
    """How an operator is written in one form.

    Attributes
    ----------
    layout : the new tensors, for the original node.
    values : name -> shape (None: not known) of each activation between the new nodes.
    emit : the new nodes in order. Each but the last is named by what it makes ("left"); the last keeps the original's
        name.
    """

    layout: Callable[[onnx.NodeProto, SiteChoice], tuple[TensorLayout, ...]]
    values: Callable[[ScopeView, SiteChoice], dict[str, Dims | None]]
    emit: Callable[[Parts], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """The knowledge about one operator; `writers` by the name of the form. See the module's docstring."""

    op_type: str
    match: Callable[[Candidate], Site | Skipped | None]
    writers: Mapping[str, Writer]
    domain: str = ""


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
    if node.overload or (default_domain(node.domain), node.op_type) in candidate.view.local_functions:
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


def straight(part: str, split: tuple[int, ...], shape: tuple[int, ...]) -> TensorLayout:
    """Stored as `shape`, in the order of the part's (groups, rows, columns) `split`."""
    return TensorLayout(part, shape, Rearrangement(split, (0, 1, 2), shape))


def transposed(part: str, split: tuple[int, ...], shape: tuple[int, ...]) -> TensorLayout:
    """Stored as `shape`, each group's matrix transposed; `split` is the part's (groups, rows, columns)."""
    return TensorLayout(part, shape, Rearrangement(split, (0, 2, 1), shape))


def bias_layout(part: str, size: int, bias: WeightRef) -> TensorLayout:
    """A new bias of `size` values, made of a stored one."""
    return TensorLayout(part, (size,), Rearrangement((size,), (0,), (size,)), bias)
