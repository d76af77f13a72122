"""Write the chosen sites as smaller nodes.

The nodes are built and edited in onnx-graphsurgeon's view. Only they and the new tensors are taken from its exporter;
they are spliced into a copy of the original, where the node that they replace was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from lowrank_onnx.passes.graph_view import ModelView, ScopeView, default_domain, quiet_graphsurgeon, view_model
from lowrank_onnx.passes.names import NewNames
from lowrank_onnx.passes.rule import Parts, TensorLayout, Writer
from lowrank_onnx.passes.rules import RULE_OF
from lowrank_onnx.passes.splice import ScopeEdit, splice
from lowrank_onnx.passes.tie import own_choice, read_transposed, tied_parts
from lowrank_onnx.passes.value_types import tensor_value_info
from lowrank_onnx.types import NewTensor, Scope, Site, SiteChoice, WeightRef

TOOL = "lowrank-onnx"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten skeleton and the tensors that it needs.

    Attributes
    ----------
    skeleton : a new proto; the original isn't changed.
    new_tensors : each stored once, whatever number of sites use it. Their `scope` and `weight` speak of the original
        (node indices before the rewrite).
    """

    skeleton: onnx.ModelProto
    new_tensors: tuple[NewTensor, ...]


def rewrite(
    skeleton: onnx.ModelProto,
    choices: Sequence[SiteChoice],
    *,
    tool_version: str,
    placeholder: Callable[[NewTensor, str], onnx.TensorProto],
) -> Rewrite:
    """Replace the nodes of `choices` by nodes that apply factors in the chosen forms, at the chosen ranks.

    Parameters
    ----------
    skeleton : the model in which the sites were found; it isn't changed.
    choices : sites with their forms and ranks. Choices that share a weight must agree on both: its factors are stored
        once.
    tool_version : goes into the new nodes' metadata.
    placeholder : makes the initializer for a new tensor and a key that is unique to it; no values are computed here.

    Returns
    -------
    Rewrite : the weight of a chosen site is gone from it if nothing else uses the weight. Nodes and tensors that no
        choice concerns have the bytes that they had.

    Raises
    ------
    ModelError
        onnx-graphsurgeon can't import the model.
    ValueError
        A choice doesn't belong to this model, is given twice, has a form that isn't offered for its site or a rank
        that the form doesn't have, or contradicts another choice for the same weight.
    """
    view = view_model(skeleton)
    _check_choices(view, choices)
    writer = _Writer(view, tool_version, placeholder)
    positions = {scope: position for position, scope in enumerate(view.scopes)}
    for choice in sorted(choices, key=lambda choice: (positions[choice.site.scope], choice.site.node_index)):
        writer.write(choice)
    writer.update_view()
    return Rewrite(splice(skeleton, writer.edits), tuple(writer.new_tensors))


def _check_choices(view: ModelView, choices: Iterable[SiteChoice]) -> None:
    chosen: dict[WeightRef, SiteChoice] = {}
    nodes: set[tuple[Scope, int]] = set()
    for choice in choices:
        site = choice.site
        scope = view.scopes.get(site.scope)
        node = scope.nodes[site.node_index] if scope and 0 <= site.node_index < len(scope.nodes) else None
        if (
            node is None
            or node.op_type != site.op_type
            or site.output not in node.output
            or site.op_type not in RULE_OF
        ):
            raise ValueError(f"site '{site.name}' isn't in this model")
        offered = [form.name for form in site.forms]
        if choice.form.name not in offered:
            raise ValueError(f"site '{site.name}': form {choice.form.name}, expected one of {', '.join(offered)}")
        largest = choice.form.largest_rank(site.shape)
        if not 1 <= choice.rank <= largest:
            raise ValueError(f"site '{site.name}': rank {choice.rank}, expected 1 to {largest}")
        if (site.scope, site.node_index) in nodes:
            raise ValueError(f"site '{site.name}' is chosen twice")
        nodes.add((site.scope, site.node_index))
        other = chosen.setdefault(site.weight, choice)
        if (other.form, other.rank) != (choice.form, choice.rank):
            raise ValueError(
                f"weight '{site.weight.name}' is shared and would need {other.form.name} at rank {other.rank} and "
                f"{choice.form.name} at rank {choice.rank}"
            )
    _check_bundles(chosen.values())


def _check_bundles(choices: Iterable[SiteChoice]) -> None:
    bundles: dict[str, list[SiteChoice]] = {}
    for choice in choices:
        if choice.form.bundle is not None:
            bundles.setdefault(choice.form.bundle, []).append(choice)
    for name, members in bundles.items():
        ranks = sorted({choice.rank for choice in members})
        size = members[0].form.bundle_size
        if len(members) != size or len(ranks) != 1:
            raise ValueError(
                f"sites that share the first factor of '{name}': {len(members)} of {size} chosen, at rank "
                f"{', '.join(map(str, ranks))}; expected all of them, at one rank"
            )


class _Writer:
    """Collects the edits of all scopes, site by site."""

    def __init__(
        self, view: ModelView, tool_version: str, placeholder: Callable[[NewTensor, str], onnx.TensorProto]
    ) -> None:
        self.edits: dict[Scope, ScopeEdit] = {}
        self.new_tensors: list[NewTensor] = []
        self._view = view
        self._tool_version = tool_version
        self._placeholder = placeholder
        self._names = NewNames(view)
        self._constants: dict[tuple[WeightRef, TensorLayout], Any] = {}
        self._shared_values: dict[str, dict[str, Any]] = {}
        self._remaining: dict[tuple[Scope, str], int] = {}
        self._new_nodes: dict[Scope, dict[int, tuple[Any, ...]]] = {}

    def write(self, choice: SiteChoice) -> None:
        """Replace the node of one site."""
        site = choice.site
        scope = self._view.scopes[site.scope]
        node, proto = scope.graph.nodes[site.node_index], scope.nodes[site.node_index]
        own = own_choice(choice)
        writer = RULE_OF[site.op_type].writers[own.form.name]
        if site.native is None:
            tensors = {layout.part: self._tensor(choice, layout) for layout in writer.layout(proto, choice)}
            transposed: dict[str, Any] = {}
        else:
            tensors, transposed = self._tied_tensors(proto, choice)
        values = self._values(writer, scope, own)
        if choice.form.bundle is not None:
            values = self._shared_values.setdefault(choice.form.bundle, values)
        inputs, outputs = list(node.inputs), list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        nodes = writer.emit(Parts(own, inputs, outputs, node.attrs, tensors, values))
        nodes = read_transposed(nodes, transposed, partial(self._transpose, site))
        for new in nodes[:-1]:
            new.name = self._names.node(f"{scope.label(site.node_index)}.{new.name}")
        nodes[-1].name = node.name
        for new in nodes:
            new.domain = node.domain if new.op == site.op_type or not default_domain(proto.domain) else None
        self._new_nodes.setdefault(site.scope, {})[site.node_index] = nodes
        self._edit(site.scope).replaced[site.node_index] = self._export(nodes, proto, choice)
        still_read = {value.name for new in nodes for value in new.inputs}
        for name in proto.input:
            if name and name not in still_read:
                self._release(scope, name)

    def update_view(self) -> None:
        """Put the new nodes into onnx-graphsurgeon's graphs, in place of the old."""
        for scope, replaced in self._new_nodes.items():
            nodes = self._view.scopes[scope].graph.nodes
            nodes[:] = [new for index, node in enumerate(nodes) for new in replaced.get(index, (node,))]

    def _edit(self, scope: Scope) -> ScopeEdit:
        return self.edits.setdefault(scope, ScopeEdit())

    def _tensor(self, choice: SiteChoice, layout: TensorLayout) -> Any:
        """A new tensor as it is read by nodes; sites that share a weight share its tensors."""
        weight = choice.site.weight
        key = (weight, layout)
        if key not in self._constants:
            # Below IR version 4 initializers must be graph inputs, which a subgraph can't be given.
            scope = () if self._view.inputs_hold_initializers else weight.scope
            name = self._names.tensor(f"{weight.name}.{layout.part}")
            tensor = NewTensor(
                name=name,
                scope=scope,
                dtype=weight.dtype,
                shape=layout.shape,
                weight=weight,
                form=choice.form.name,
                rank=choice.rank,
                part=layout.part,
                arrangement=layout.arrangement,
                bias=layout.bias,
                key=name,
            )
            self._constants[key] = self._constant(tensor)
        return self._constants[key]

    def _tied_tensors(self, proto: onnx.NodeProto, choice: SiteChoice) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parts of a tied site's own form as they are stored, and by name those that it reads transposed."""
        parts = tied_parts(proto, choice)
        assert parts is not None, "the finder tied it"
        tensors = {name: self._tensor(choice, part.stored) for name, part in parts}
        return tensors, {tensors[name].name: tensors[name] for name, part in parts if part.transposed}

    def _transpose(self, site: Site, stored: Any) -> Any:
        """The value of a new tensor's transpose."""
        dims = tuple(reversed(stored.shape))
        info = tensor_value_info(self._names.tensor(f"{stored.name}.transposed"), site.weight.dtype, dims)
        self._edit(site.scope).value_info.append(info)
        return gs.Variable(info.name, dtype=info.type.tensor_type.elem_type, shape=dims)

    def _constant(self, tensor: NewTensor) -> Any:
        with quiet_graphsurgeon():
            constant = gs.Constant(tensor.name, LazyValues(self._placeholder(tensor, tensor.key)))
            edit = self._edit(tensor.scope)
            edit.initializers.append(OnnxExporter.export_tensor_proto(constant))
        if self._view.inputs_hold_initializers:
            edit.inputs.append(tensor_value_info(tensor.name, tensor.dtype, tensor.shape))
        self.new_tensors.append(tensor)
        return constant

    def _values(self, writer: Writer, scope: ScopeView, choice: SiteChoice) -> dict[str, Any]:
        """The activations between the new nodes."""
        site = choice.site
        values = {}
        for suffix, dims in writer.values(scope, choice).items():
            name = self._names.tensor(f"{site.output}.{suffix}")
            info = tensor_value_info(name, site.weight.dtype, dims)
            self._edit(site.scope).value_info.append(info)
            values[suffix] = gs.Variable(name, dtype=info.type.tensor_type.elem_type, shape=dims)
        return values

    def _export(self, nodes: Sequence[Any], original: onnx.NodeProto, choice: SiteChoice) -> tuple[onnx.NodeProto, ...]:
        with quiet_graphsurgeon():
            protos = tuple(OnnxExporter.export_node(node) for node in nodes)
        facts = {
            "lowrank.tool": TOOL,
            "lowrank.version": self._tool_version,
            "lowrank.method": choice.solver,
            "lowrank.form": choice.form.name,
            "lowrank.rank": str(choice.rank),
            "lowrank.relative_error": f"{choice.relative_error:.6g}",
            "lowrank.site": choice.site.name,
            "lowrank.weight": choice.site.weight.name,
        }
        protos[-1].MergeFrom(_carried_over(original, facts))
        for proto in protos:
            for key, value in facts.items():
                proto.metadata_props.add(key=key, value=value)
        return protos

    def _release(self, scope: ScopeView, name: str) -> None:
        """One use of `name` is gone: remove what is unused then, back to the stored tensors."""
        pending = [(scope.resolve(name), name)]
        while pending:
            owner, name = pending.pop()
            if owner is None:
                continue
            key = (owner.scope, name)
            self._remaining[key] = self._remaining.get(key, len(self._view.uses[key])) - 1
            if self._remaining[key] > 0:
                continue
            edit = self._edit(owner.scope)
            edit.gone.add(name)
            if name not in owner.initializers:
                index = owner.producers[name]
                edit.removed.add(index)
                pending += [(owner.resolve(source), source) for source in owner.nodes[index].input if source]


def _carried_over(original: onnx.NodeProto, replaced: Iterable[str]) -> onnx.NodeProto:
    """What a node says beside its operation (doc string, metadata, fields of later versions), for its successor."""
    rest = onnx.NodeProto()
    rest.CopyFrom(original)
    for field in ("op_type", "domain", "name", "input", "output", "attribute"):
        rest.ClearField(field)
    kept = [entry for entry in rest.metadata_props if entry.key not in replaced]
    del rest.metadata_props[:]
    rest.metadata_props.extend(kept)
    return rest
