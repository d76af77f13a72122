"""The stored weights behind sites: the groups of sites that share one, and how much the model stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from lowrank_onnx.forms import EMBEDDING, Form
from lowrank_onnx.passes.graph_view import child_graphs
from lowrank_onnx.types import MatrixShape, Scope, Site, WeightRef

_FLOATING = frozenset(
    (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
)


_MOVES = ("transpose", "reshape")


@dataclass(frozen=True, slots=True)
class SharedWeight:
    """A stored weight and every site that uses it; it is written once, in one form at one rank."""

    weight: WeightRef
    sites: tuple[Site, ...]

    @property
    def shape(self) -> MatrixShape:
        """The (groups, in, out) of the weight, the same at every site."""
        return self.sites[0].shape

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms in which the sites can be written, the same at every site; the plain one first."""
        return self.sites[0].forms

    def form(self, name: str) -> Form:
        """One of its forms by name (`KeyError` where it has none of that name)."""
        return {form.name: form for form in self.forms}[name]


def group_by_weight(sites: Iterable[Site]) -> tuple[SharedWeight, ...]:
    """Collect the sites of each stored weight, in the order of their first use."""
    groups: dict[WeightRef, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.weight, []).append(site)
    return tuple(SharedWeight(weight, tuple(users)) for weight, users in groups.items())


def room_for_factors(weight: WeightRef) -> int | None:
    """How many values, of the type that the nodes compute in, take as many bytes as what is stored; None where the
    weight is stored as it is read, and the answer is its own number.
    """
    return None if weight.encoding is None else weight.encoding.nbytes // weight.itemsize


def decoding_notes(weights: Iterable[WeightRef]) -> tuple[str, ...]:
    """What is to be said of factors that replace weights which are stored in another type than they are read in."""
    found = Counter(
        (weight.encoding.description, weight.dtype)
        for weight in weights
        if weight.encoding is not None and any(step.operation not in _MOVES for step in weight.encoding.steps)
    )
    return tuple(
        f"{count} weight{'s' if count > 1 else ''} stored as {description}: replaced by {dtype} factors"
        for (description, dtype), count in found.items()
    )


def stored_tensors(skeleton: onnx.ModelProto, weights: Iterable[WeightRef]) -> dict[WeightRef, onnx.TensorProto]:
    """The tensor behind each weight (a placeholder where its bytes were left in the file), after one walk."""
    wanted: dict[tuple[Scope, str, str], list[WeightRef]] = {}
    for weight in weights:
        wanted.setdefault((weight.scope, weight.storage, weight.name), []).append(weight)
    found: dict[WeightRef, onnx.TensorProto] = {}
    pending: list[tuple[Scope, onnx.GraphProto]] = [((), skeleton.graph)]
    while pending:
        scope, graph = pending.pop()
        held = [("initializer", tensor.name, tensor) for tensor in graph.initializer]
        for index, node in enumerate(graph.node):
            if not node.attribute:
                continue
            pending += [((*scope, (index, label)), inner) for label, inner in child_graphs(node)]
            if node.op_type == "Constant" and node.output:
                held += [("constant", node.output[0], a.t) for a in node.attribute if a.name == "value"]
        for storage, name, tensor in held:
            found.update((weight, tensor) for weight in wanted.get((scope, storage, name), ()))
    return found


def count_parameters(skeleton: onnx.ModelProto) -> int:
    """Elements of all floating-point initializers and Constant tensors of the model's graphs and functions."""
    return sum(prod(tensor.dims) for tensor in _tensors(skeleton) if tensor.data_type in _FLOATING)


def written_before(skeleton: onnx.ModelProto) -> bool:
    """Whether an earlier run of this tool wrote factors into the model, by the metadata that it leaves on nodes."""
    graphs = [skeleton.graph]
    while graphs:
        for node in graphs.pop().node:
            if any(entry.key == "lowrank.tool" for entry in node.metadata_props):
                return True
            graphs.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    return False


def _tensors(skeleton: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    nodes = [node for function in skeleton.functions for node in function.node]
    graphs = [skeleton.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
            continue
        node = nodes.pop()
        for attribute in node.attribute:
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            elif node.op_type == "Constant" and attribute.name == "value":
                yield attribute.t


def lookup_positions(sites: Sequence[Site], positions: Mapping[str, int]) -> int:
    """Those of `total_positions` at which a tied weight's rows are looked up, which multiplies nothing."""
    lookups = [site for site in sites if site.native is not None and site.native.forms[0] == EMBEDDING]
    return sum(positions.get(site.name, 0) for site in lookups)


def total_positions(sites: Sequence[Site], positions: Mapping[str, int]) -> int | None:
    """Positions at which the sites of one weight apply it in one run; None if any of them wasn't observed."""
    if any(site.name not in positions for site in sites):
        return None
    return sum(positions[site.name] for site in sites)
