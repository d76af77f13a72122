"""Whether the outputs of a site may come in another order: what reads them has to be stored in that order too.

A permutation of the columns of W1 passes through what treats all features alike, and ends in the rows of the weight
that sums over them: ``f(x @ W1[:, p] + b[p]) @ W2[p] = f(x @ W1 + b) @ W2``. So it costs nothing at run time. For a
convolution the features are its channels.

1. Every way from the output has to end in a MatMul, Gemm or Conv that sums over the features with a stored weight.
2. On the way there may be functions of one element; sums, products and the like with constants (those that differ from
   feature to feature are permuted) or with other values on the way, which are in the same order; after a convolution
   also pooling, BatchNormalization and depthwise convolutions.
3. What is permuted is stored as the nodes read it, for this one use, and nothing on the way is an output of the graph
   or read inside a subgraph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from lowrank_onnx.passes.dataflow import Dataflow, read_dataflow
from lowrank_onnx.passes.graph_view import ModelView, child_graphs, view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.residual import stored_constant
from lowrank_onnx.passes.weight_source import StoredWeight, WeightSources, is_default
from lowrank_onnx.types import Site, WeightRef

UNARY = frozenset(
    (
        *("Abs", "Cast", "Ceil", "Celu", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus"),
        *("Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    )
)
_BROADCASTING = frozenset(("Add", "Clip", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"))
POOLING = frozenset(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"))
_OPERATORS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True, slots=True)
class Follower:
    """A stored tensor whose entries along `axis` belong to the features of a site, one each."""

    tensor: WeightRef
    axis: int


@dataclass(frozen=True, slots=True)
class Reordered:
    """A stored tensor, and for each of some axes the entry that comes first, second, ... there."""

    tensor: WeightRef
    orders: tuple[tuple[int, tuple[int, ...]], ...]
    key: str


class _OrderStaysError(Exception):
    """The order can't be changed; the message says why."""


def find_followers(skeleton: onnx.ModelProto, sites: Sequence[Site]) -> dict[str, tuple[Follower, ...] | str]:
    """For each site by name the tensors that have to follow its outputs into another order, or why none can be had.

    Parameters
    ----------
    skeleton : the model in which the sites were found, or one in which they were written in any form.
    sites : of the main graph or not.
    """
    view = view_model(skeleton)
    flow, sources = read_dataflow(skeleton), WeightSources(view)
    return {site.name: _followers(view, flow, sources, site) for site in sites}


def _followers(view: ModelView, flow: Dataflow, sources: WeightSources, site: Site) -> tuple[Follower, ...] | str:
    if site.scope or site.op_type not in _OPERATORS:
        return f"{site.op_type} in a subgraph" if site.scope else f"{site.op_type} has no one axis of outputs"
    convolves = site.op_type == "Conv"
    axis = 1 - len(site.weight.shape) if convolves else -1
    walk = _Walk(view, flow, sources, convolves, axis, site.shape.out_features)
    try:
        walk.run(site.output)
    except _OrderStaysError as stopped:
        return str(stopped)
    return tuple(walk.followers)


@dataclass(slots=True)
class _Walk:
    """The way of one site's outputs through the graph; `axis` (counted from the end) has `size` features."""

    view: ModelView
    flow: Dataflow
    sources: WeightSources
    convolves: bool
    axis: int
    size: int
    followers: list[Follower] = field(default_factory=list)

    def run(self, output: str) -> None:
        """Follow every reader of `output`; raises `_OrderStaysError`."""
        permuted, pending, met = {output}, [output], set[int]()
        others: list[tuple[int, str]] = []
        while pending:
            value = pending.pop()
            if value in self.flow.outputs:
                raise _OrderStaysError(f"'{value}' is an output of the graph")
            for index in self.flow.readers.get(value, ()):
                others += self._others(index, value)
                if index not in met and not self._ends(index, value):
                    made = self._passes(index, value)
                    permuted.add(made)
                    pending.append(made)
                met.add(index)
        for index, other in others:
            if other not in permuted:
                raise _OrderStaysError(f"{self._label(index)} combines it with '{other}', whose order stays")

    def _others(self, index: int, value: str) -> Iterator[tuple[int, str]]:
        """What else a node reads that isn't constant."""
        return ((index, name) for name in self.flow.varying(index) if name != value)

    def _ends(self, index: int, value: str) -> bool:
        """Whether the node sums over the features with a stored weight, which then follows."""
        node = self.flow.node(index)
        if node.op_type not in _OPERATORS or not is_default(node, node.op_type):
            return False
        if len(node.input) < 2 or node.input[0] != value:
            return False
        if (node.op_type == "Conv") != self.convolves or (self.convolves and _integer(node, "group", 1) != 1):
            return False
        if node.op_type == "Gemm" and _integer(node, "transA", 0):
            return False
        if list(node.input).count(value) > 1 or self.flow.varying(index) != (value,):
            return False
        ref = self._stored(index, node.input[1])
        axis = 1 if self.convolves else len(ref.shape) - 2
        if node.op_type == "Gemm" and _integer(node, "transB", 0):
            axis = 1
        self._follow(index, ref, axis)
        return True

    def _passes(self, index: int, value: str) -> str:
        """The node's output, where it treats all features alike; what it has for each of them follows."""
        node = self.flow.node(index)
        made: str = next(iter(node.output), "")
        known = is_default(node, node.op_type) and len(node.output) == 1 and not any(True for _ in child_graphs(node))
        if known and node.op_type in UNARY:
            return made
        if known and node.op_type in _BROADCASTING:
            for name in dict.fromkeys(node.input):
                if name in self.flow.constants:
                    self._broadcast(index, name)
            return made
        if made and is_default(node, "Dropout") and node.input[0] == value and len(node.input) < 3:
            return made
        if known and self.convolves and node.input[0] == value:
            if node.op_type in POOLING:
                return made
            if node.op_type == "BatchNormalization" and not _integer(node, "training_mode", 0):
                self._follow_all(index, node.input[1:])
                return made
            if node.op_type == "Conv" and _integer(node, "group", 1) == self.size:
                self._follow_all(index, [name for name in node.input[1:] if name])
                return made
        raise _OrderStaysError(
            f"{self._label(index)} treats features differently, or sums over them with what isn't stored"
        )

    def _broadcast(self, index: int, name: str) -> None:
        tensor = stored_constant(self.flow, name)
        if tensor is None:
            raise _OrderStaysError(f"{self._label(index)} reads '{name}', a constant that isn't stored")
        place = len(tensor.dims) + self.axis
        if self.convolves and len(tensor.dims) > 1 - self.axis:
            raise _OrderStaysError(f"{self._label(index)} gives it more dimensions")
        if place >= 0 and tensor.dims[place] != 1:
            self._follow(index, self._stored(index, name), place)

    def _follow_all(self, index: int, names: Sequence[str]) -> None:
        """Tensors whose first axis is that of the features."""
        for name in names:
            if name not in self.flow.constants:
                raise _OrderStaysError(f"{self._label(index)} reads '{name}', which isn't stored")
            self._follow(index, self._stored(index, name), 0)

    def _stored(self, index: int, name: str) -> WeightRef:
        source = self.sources.find(self.view.scopes[()], name)
        if not isinstance(source, StoredWeight) or source.ref.encoding is not None or source.ref.name != name:
            raise _OrderStaysError(f"{self._label(index)} reads '{name}', which isn't stored as it is read")
        if len(self.view.uses[(), name]) > 1:
            raise _OrderStaysError(f"'{name}', which {self._label(index)} reads, has other uses")
        return source.ref

    def _follow(self, index: int, ref: WeightRef, axis: int) -> None:
        if not 0 <= axis < len(ref.shape) or ref.shape[axis] != self.size:
            shape = f"'{ref.name}' of shape {list(ref.shape)}"
            raise _OrderStaysError(f"{self._label(index)} reads {shape}, expected {self.size} features on axis {axis}")
        self.followers.append(Follower(ref, axis))

    def _label(self, index: int) -> str:
        return f"'{self.view.scopes[()].label(index)}' ({self.flow.node(index).op_type})"


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def reorder_tensors(
    skeleton: onnx.ModelProto,
    followers: Sequence[tuple[Follower, tuple[int, ...]]],
    placeholder: Callable[[WeightRef, str], onnx.TensorProto],
) -> tuple[onnx.ModelProto, tuple[Reordered, ...]]:
    """A copy of the model in which stored tensors are to be made anew, in another order; nothing else of it changes.

    Parameters
    ----------
    skeleton : the model in which the followers were found; it isn't changed.
    followers : each with the order of its entries.
    placeholder : makes the tensor for a key that is unique to it; no values are computed here.
    """
    names = NewNames(view_model(skeleton))
    orders: dict[WeightRef, list[tuple[int, tuple[int, ...]]]] = {}
    for follower, order in followers:
        orders.setdefault(follower.tensor, []).append((follower.axis, order))
    made = tuple(Reordered(ref, tuple(axes), names.tensor(f"{ref.name}.reordered")) for ref, axes in orders.items())
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    held = _held_tensors(model.graph)
    for one in made:
        stored = held[one.tensor.storage, one.tensor.name]
        name = stored.name
        stored.CopyFrom(placeholder(one.tensor, one.key))
        stored.name = name
    return model, made


def _held_tensors(graph: onnx.GraphProto) -> Mapping[tuple[str, str], onnx.TensorProto]:
    held = {("initializer", tensor.name): tensor for tensor in graph.initializer}
    for node in graph.node:
        if is_default(node, "Constant"):
            stored = (one.t for one in node.attribute if one.name == "value")
            held.update((("constant", name), tensor) for name, tensor in zip(node.output, stored, strict=False))
    return held
