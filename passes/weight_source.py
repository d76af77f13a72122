"""From a node's input to the stored tensor behind it, or to the reason why there is none.

A weight is a dense initializer of this or an outer graph, or the tensor of a Constant node; Identity nodes on the way
are followed, and so are the operators of `decoding` (an unfolded Transpose, a scaled integer, ...), which the weight
then has as its encoding. Whatever else is computed from constants alone is recognised as a weight that can't be used,
with the operators that it sits behind; what depends on the model's inputs is an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx

from lowrank_onnx.passes.decoding import decoded, is_decodable, small_integers
from lowrank_onnx.passes.graph_view import ModelView, ScopeView, child_graphs, default_domain
from lowrank_onnx.passes.value_types import dtype_name, element_count, is_quantized
from lowrank_onnx.types import FLOAT_DTYPES, Scope, WeightRef

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_LONGEST_CHAIN = 6
_LONGEST_DECODING = 8
_Storage: TypeAlias = Literal["initializer", "constant"]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor whose stored values are the node's weight."""

    ref: WeightRef

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return element_count(self.ref.shape)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Constant, but not a weight that can be replaced."""

    reason: str
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class Activation:
    """Known at run time only; `reason` says why it is no weight."""

    reason: str


Source: TypeAlias = StoredWeight | Unusable | Activation


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a constant comes from: the largest stored tensor behind it, and the operators on the way."""

    dtype: str
    elements: int
    chain: tuple[str, ...]


class WeightSources:
    """Answers `find` for every input of every node of one model, in time linear in the model.

    `fix_overridable` takes the initializers that are inputs of the main graph too for constants.
    """

    def __init__(self, view: ModelView, *, fix_overridable: bool = False) -> None:
        self._view = view
        self._fixed = fix_overridable or view.inputs_hold_initializers
        self._trained = _training_names(view.skeleton)
        self._origins: dict[tuple[Scope, str], _Origin] = {}
        for scope in view.scopes.values():
            self._find_origins(scope)

    def find(self, scope: ScopeView, name: str) -> Source:
        """What stands behind `name` as read by a node of `scope`."""
        source = self._trace(scope, name, _LONGEST_DECODING)
        if not isinstance(source, StoredWeight):
            return source
        ref = source.ref
        if ref.dtype not in FLOAT_DTYPES:
            return Unusable(f"{ref.dtype} weight (can factorize {', '.join(FLOAT_DTYPES)})", source.parameters)
        return source

    def is_decoding(self, scope: ScopeView, index: int) -> bool:
        """Whether the node at `index` makes a weight of stored tensors, rather than anything of an activation."""
        node = scope.nodes[index]
        if len(node.output) != 1 or is_default(node, "Constant"):
            return False
        return isinstance(self._trace(scope, node.output[0], _LONGEST_DECODING), StoredWeight)

    def _trace(self, scope: ScopeView, name: str, steps: int) -> Source:
        """As `find`, for tensors of every type; at most `steps` operators back."""
        owner, name = follow_identities(scope, name)
        if owner is None:
            return Activation(f"weight '{name}' isn't defined anywhere in the model")
        if name in owner.repeated:
            return Unusable(f"the name '{name}' is defined more than once")
        if name in owner.sparse:
            tensor = owner.sparse[name]
            return Unusable(f"sparse initializer '{name}'", element_count(tensor.dims))
        if name in owner.initializers:
            return self._initializer(owner, name)
        if name in owner.producers:
            return self._produced(owner, name, steps)
        if owner.parent is not None:
            return Activation(f"weight is '{name}', an input of its subgraph")
        return Activation(f"weight is graph input '{name}' without a value")

    def _initializer(self, owner: ScopeView, name: str) -> Source:
        tensor = owner.initializers[name]
        if name in owner.inputs and (owner.parent is not None or not self._fixed):
            version = self._view.skeleton.ir_version
            return Unusable(
                f"initializer '{name}' is also a graph input and can be overridden at run time (IR version {version}): "
                "--fix-overridable takes its value for good",
                element_count(tensor.dims),
            )
        return self._stored(owner, name, tensor, "initializer")

    def _produced(self, owner: ScopeView, name: str, steps: int) -> Source:
        node = owner.nodes[owner.producers[name]]
        if is_default(node, "Constant"):
            return self._constant(owner, name, node)
        origin = self._origins.get((owner.scope, name))
        if origin is None:
            label = owner.label(owner.producers[name])
            return Activation(f"weight is computed at run time (produced by '{label}' ({node.op_type}))")
        weight = self._decoded(owner, node, steps - 1) if steps and is_default(node, node.op_type) else None
        return Unusable(_behind(origin), origin.elements) if weight is None else StoredWeight(weight)

    def _decoded(self, owner: ScopeView, node: onnx.NodeProto, steps: int) -> WeightRef | None:
        """The weight that a node makes of stored tensors by a known operator."""
        if len(node.output) != 1 or ("", node.op_type) in self._view.local_functions:
            return None

        def trace(name: str) -> WeightRef | None:
            source = self._trace(owner, name, steps)
            return source.ref if isinstance(source, StoredWeight) and is_decodable(source.ref.dtype) else None

        def numbers(name: str) -> tuple[int, ...] | None:
            holder, name = follow_identities(owner, name)
            if holder is None or name in holder.repeated:
                return None
            tensor = holder.initializers.get(name)
            if (
                tensor is None
                and name in holder.producers
                and is_default(holder.nodes[holder.producers[name]], "Constant")
            ):
                tensor = _constant_tensor(holder.nodes[holder.producers[name]])
            overridable = name in holder.inputs and (holder.parent is not None or not self._fixed)
            return None if tensor is None or overridable else small_integers(tensor)

        return decoded(node, trace, numbers)

    def _constant(self, owner: ScopeView, name: str, node: onnx.NodeProto) -> Source:
        value = _constant_tensor(node)
        if value is not None:
            return self._stored(owner, name, value, "constant")
        kinds = ", ".join(attribute.name for attribute in node.attribute) or "no value"
        return Unusable(f"Constant node '{name}' holds {kinds}, expected a dense tensor (value)")

    def _stored(self, owner: ScopeView, name: str, tensor: onnx.TensorProto, storage: _Storage) -> Source:
        dtype, shape = dtype_name(tensor.data_type), tuple(tensor.dims)
        elements = element_count(shape)
        if any(size <= 0 for size in shape):
            return Unusable(f"weight '{name}' has shape {list(shape)}: a dimension of size 0 or less")
        if name in self._trained:
            return Unusable(f"weight '{name}' is named in the model's training information", elements)
        return StoredWeight(WeightRef(owner.scope, name, storage, dtype, shape))

    def _find_origins(self, scope: ScopeView) -> None:
        """One pass in node order: a value is constant if all that it is computed from is.

        In a graph that isn't sorted some constants are taken for activations: a reason may then be less exact, and
        nothing else changes.
        """
        for node in scope.nodes:
            if is_default(node, "Constant"):
                tensor = _constant_tensor(node)
                origin: _Origin | None = _Origin("", 0, ()) if tensor is None else _stored_origin(tensor)
            elif not any(node.input) or node.op_type in _RANDOM or any(True for _ in child_graphs(node)):
                origin = None
            else:
                origin = self._derived_origin(scope, node)
            if origin is not None:
                self._origins.update(((scope.scope, name), origin) for name in node.output if name)

    def _derived_origin(self, scope: ScopeView, node: onnx.NodeProto) -> _Origin | None:
        largest: _Origin | None = None
        for name in node.input:
            if not name:
                continue
            origin = self._origin(scope, name)
            if origin is None:
                return None
            if largest is None or origin.elements > largest.elements:
                largest = origin
        assert largest is not None, "callers pass nodes with at least one input"
        chain = largest.chain if is_default(node, "Identity") else (*largest.chain, node.op_type)
        return _Origin(largest.dtype, largest.elements, chain[-_LONGEST_CHAIN:])

    def _origin(self, scope: ScopeView, name: str) -> _Origin | None:
        owner = scope.resolve(name)
        if owner is None:
            return None
        if name in owner.initializers:
            return _stored_origin(owner.initializers[name])
        if name in owner.sparse:
            return _Origin(dtype_name(owner.sparse[name].values.data_type), element_count(owner.sparse[name].dims), ())
        return self._origins.get((owner.scope, name))


def stored_dims(view: ModelView, weight: WeightRef) -> tuple[int, ...]:
    """The shape of what is stored, before anything decodes it."""
    owner = view.scopes[weight.scope]
    tensor = owner.initializers.get(weight.name) if weight.storage == "initializer" else None
    if tensor is None:
        tensor = _constant_tensor(owner.nodes[owner.producers[weight.name]])
    assert tensor is not None, "it was found there"
    return tuple(tensor.dims)


def follow_identities(scope: ScopeView, name: str) -> tuple[ScopeView | None, str]:
    """The graph and the name behind a chain of Identity nodes that ends in `name`."""
    owner = scope.resolve(name)
    visited: set[tuple[Scope, str]] = set()
    while owner is not None and name in owner.producers and name not in owner.repeated:
        node = owner.nodes[owner.producers[name]]
        if not is_identity(node) or (owner.scope, name) in visited:
            break
        visited.add((owner.scope, name))
        name = node.input[0]
        owner = owner.resolve(name)
    return owner, name


def is_identity(node: onnx.NodeProto) -> bool:
    """True for the standard Identity with one input and one output."""
    return is_default(node, "Identity") and len(node.input) == len(node.output) == 1


def is_default(node: onnx.NodeProto, op_type: str) -> bool:
    """True if `node` is the standard operator `op_type`."""
    return node.op_type == op_type and default_domain(node.domain) == "" and not node.overload


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The dense tensor of a Constant node, or None where it holds something else."""
    if len(node.attribute) != 1 or node.attribute[0].name != "value" or not node.attribute[0].HasField("t"):
        return None
    tensor: onnx.TensorProto = node.attribute[0].t
    return tensor


def _stored_origin(tensor: onnx.TensorProto) -> _Origin:
    return _Origin(dtype_name(tensor.data_type), element_count(tensor.dims), ())


def _behind(origin: _Origin) -> str:
    chain = " -> ".join(origin.chain)
    if "DequantizeLinear" in origin.chain:
        return f"weight is quantized ({origin.dtype} behind {chain})"
    if is_quantized(origin.dtype):
        return f"weight sits behind {chain} (weight-only quantized, stored as {origin.dtype})"
    return f"weight sits behind {chain}: fold constants first"


def _training_names(skeleton: onnx.ModelProto) -> set[str]:
    names: set[str] = set()
    for info in skeleton.training_info:
        for bindings in (info.initialization_binding, info.update_binding):
            names |= {name for binding in bindings for name in (binding.key, binding.value)}
        for graph in (info.initialization, info.algorithm):
            names |= {name for node in graph.node for name in (*node.input, *node.output)}
    return names
