"""Find every node whose weight can be factorized, in the main graph and in all subgraphs; say why not for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import onnx

from lowrank_onnx.forms import Form
from lowrank_onnx.passes.callable_functions import FunctionKey, function_key
from lowrank_onnx.passes.graph_view import (
    GRAPH_OUTPUT,
    ModelView,
    ScopeView,
    Use,
    child_graphs,
    default_domain,
    view_model,
)
from lowrank_onnx.passes.rule import Candidate, TensorLayout, weight_slot
from lowrank_onnx.passes.rules import RULE_OF
from lowrank_onnx.passes.tie import tie_sites
from lowrank_onnx.passes.uncovered import uncovered_weight
from lowrank_onnx.passes.weight_source import WeightSources, is_identity
from lowrank_onnx.types import Scope, Site, SiteChoice, Skipped, WeightRef

_WEIGHTED = RULE_OF.keys() - {"Gather"}
"""Operators that as a rule hold a weight; most lookups are of shapes."""


def find_sites(
    skeleton: onnx.ModelProto,
    *,
    op_types: tuple[str, ...],
    fix_overridable: bool = False,
    kept: Mapping[FunctionKey, str] = MappingProxyType({}),
) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """Find the nodes of `op_types` whose weight can be replaced by factors.

    Parameters
    ----------
    skeleton : the model; weight bytes are never read, so they may be absent.
    op_types : operators to rewrite, some of `lowrank_onnx.config.OP_TYPES`.
    fix_overridable : whether initializers that are graph inputs too, and could be given at run time, count as
        constants; those that are replaced are no inputs any more.
    kept : why model-local functions weren't written out at their calls.

    Returns
    -------
    sites : in graph order, outer graphs before the subgraphs of their nodes. Sites that share one stored weight are
        all here.
    skipped : every other node of a supported operator, and every node of another operator that holds a weight, each
        with its reason.

    Raises
    ------
    ModelError
        Names aren't UTF-8, subgraphs are nested too deeply, or onnx-graphsurgeon can't import a part.
    """
    view = view_model(skeleton)
    sources = WeightSources(view, fix_overridable=fix_overridable)
    names = _ReportNames()
    found: list[Site | Skipped] = []
    for scope in view.scopes.values():
        for index, node in enumerate(scope.nodes):
            result = _examine(view, scope, index, node, sources, names, op_types)
            if result is not None:
                found.append(result)
    found = _decline_shared(view, sources, _tie(view, found))
    found += _inside_functions(skeleton, names, kept)
    sites = tuple(item for item in found if isinstance(item, Site))
    return sites, tuple(item for item in found if isinstance(item, Skipped))


class _ReportNames:
    """Gives each reported node a name of its own; a name that is taken gets ``#index``, then ``#index.2`` and so on."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[tuple[str, int], itertools.count[int]] = {}

    def claim(self, label: str, index: int) -> str:
        name = label
        if name in self._taken:
            name = f"{label}#{index}"
        counter = self._next.setdefault((label, index), itertools.count(2)) if name in self._taken else None
        while counter is not None and name in self._taken:
            name = f"{label}#{index}.{next(counter)}"
        self._taken.add(name)
        return name


def _examine(
    view: ModelView,
    scope: ScopeView,
    index: int,
    node: onnx.NodeProto,
    sources: WeightSources,
    names: _ReportNames,
    op_types: tuple[str, ...],
) -> Site | Skipped | None:
    label = f"{scope.path}{scope.label(index)}"
    rule = RULE_OF.get(node.op_type)
    domain = default_domain(node.domain)
    if rule is None or (rule.domain and rule.domain != domain):
        uncovered = uncovered_weight(view, scope, node, sources)
        return None if uncovered is None else Skipped(names.claim(label, index), node.op_type, *uncovered)
    candidate = Candidate(view, scope, index, names.claim(label, index), sources)
    if domain != rule.domain:
        _, parameters = uncovered_weight(view, scope, node, sources) or ("", 0)
        reason = f"{node.op_type} of domain '{node.domain}' isn't the standard operator"
        return Skipped(candidate.name, node.op_type, reason, parameters)
    result = rule.match(candidate)
    if isinstance(result, Site) and result.weight.encoding and _is_quantized_activation(scope, result.input):
        reason = (
            f"its input is quantized too (weight {result.weight.encoding.description}): factorize before quantizing"
        )
        return Skipped(candidate.name, node.op_type, reason, result.shape.parameters)
    if isinstance(result, Site) and node.op_type not in op_types:
        reason = f"operator not selected (op_types: {', '.join(op_types)})"
        return Skipped(candidate.name, node.op_type, reason, result.shape.parameters)
    return result


def _is_quantized_activation(scope: ScopeView, name: str) -> bool:
    """Whether an activation comes from DequantizeLinear: the runtime computes such a node in integers."""
    owner = scope.resolve(name)
    return (
        owner is not None
        and name in owner.producers
        and owner.nodes[owner.producers[name]].op_type == ("DequantizeLinear")
    )


def _tie(view: ModelView, found: list[Site | Skipped]) -> list[Site | Skipped]:
    """Tie the sites that read one stored tensor in several layouts, where they can share a pair of factors."""
    sharing: dict[tuple[Scope, str, str], list[Site]] = {}
    for item in found:
        if isinstance(item, Site):
            sharing.setdefault((item.weight.scope, item.weight.storage, item.weight.name), []).append(item)
    tied: dict[str, Site] = {}
    for sites in sharing.values():
        if any(site.weight != sites[0].weight for site in sites) or _other_layout(view, sites[0].weight, sites):
            tied.update((site.name, site) for site in tie_sites(view, sites) or ())
    return [tied.get(item.name, item) if isinstance(item, Site) else item for item in found]


def _decline_shared(view: ModelView, sources: WeightSources, found: list[Site | Skipped]) -> list[Site | Skipped]:
    """Turn sites into `Skipped` where their weight has another use, or is needed in another layout."""
    sharing: dict[WeightRef, list[Site]] = {}
    for item in found:
        if isinstance(item, Site):
            sharing.setdefault(item.weight, []).append(item)
    readers = {_place(view, site): site for sites in sharing.values() for site in sites}
    reasons: dict[WeightRef, str] = {}
    agreed: dict[str, Site] = {}
    for weight, sites in sharing.items():
        tied = sites[0].native is not None
        reason = _other_use(view, sources, weight, sites, readers)
        if reason is None and not tied:
            reason = _other_layout(view, weight, sites)
        if reason is not None:
            reasons[weight] = reason
        elif len(sites) > 1 and not tied:
            agreed.update((site.name, site) for site in _with_common_forms(view, sites))
    return [
        item
        if isinstance(item, Skipped)
        else Skipped(item.name, item.op_type, reasons[item.weight], item.shape.parameters)
        if item.weight in reasons
        else agreed.get(item.name, item)
        for item in found
    ]


def _place(view: ModelView, site: Site) -> Use:
    """Where a site reads its weight."""
    slot = weight_slot(view.scopes[site.scope].nodes[site.node_index], site)
    return Use(site.scope, site.node_index, slot)


def _other_use(
    view: ModelView, sources: WeightSources, weight: WeightRef, sites: list[Site], readers: Mapping[Use, Site]
) -> str | None:
    """Why a weight can't leave: something else reads what is stored, if only in another layout."""
    rewritten = {_place(view, site) for site in sites}
    for use in _final_uses(view, sources, weight.scope, weight.name):
        if use.node_index == GRAPH_OUTPUT:
            return f"weight '{weight.name}' is also a graph output"
        if use in rewritten:
            continue
        if use in readers:
            return _different_layouts(weight, sites[0], readers[use])
        scope = view.scopes[use.scope]
        label, op_type = scope.label(use.node_index), scope.nodes[use.node_index].op_type
        return f"weight '{weight.name}' is also used by '{scope.path}{label}' ({op_type}), which is not rewritten"
    return None


def _final_uses(view: ModelView, sources: WeightSources, scope: Scope, name: str) -> Iterator[Use]:
    """Uses of a tensor; where an Identity or a step of a decoding reads it, the uses of that node's output instead."""
    pending = [(scope, name)]
    visited = set(pending)
    while pending:
        for use in view.uses.get(pending.pop(), ()):
            copy = None
            if use.node_index != GRAPH_OUTPUT:
                reader = view.scopes[use.scope]
                node = reader.nodes[use.node_index]
                if is_identity(node) or sources.is_decoding(reader, use.node_index):
                    copy = (use.scope, node.output[0])
            if copy is None or copy not in view.uses or copy in visited:
                yield use
            else:
                visited.add(copy)
                pending.append(copy)


def _other_layout(view: ModelView, weight: WeightRef, sites: list[Site]) -> str | None:
    first, *others = sites
    plain = first.forms[0]
    other = next(
        (
            site
            for site in others
            if site.to_matrices != first.to_matrices
            or plain not in site.forms
            or _layouts(view, site, plain) != _layouts(view, first, plain)
        ),
        None,
    )
    if other is None:
        return None
    return _different_layouts(weight, first, other)


def _different_layouts(weight: WeightRef, first: Site, other: Site) -> str:
    return f"weight '{weight.name}' is shared by '{first.name}' and '{other.name}' under different layouts"


def _layouts(view: ModelView, site: Site, form: Form) -> tuple[TensorLayout, ...]:
    """How a site's factors are stored in a form, at rank 1; a bias is each site's own."""
    node = view.scopes[site.scope].nodes[site.node_index]
    layouts = RULE_OF[site.op_type].writers[form.name].layout(node, SiteChoice(site, form, 1, "", 0.0, 0.0))
    return tuple(layout for layout in layouts if layout.bias is None)


def _with_common_forms(view: ModelView, sites: list[Site]) -> Iterator[Site]:
    """The sites of one weight with the forms that all of them have, and under the same layout: it is stored once."""
    first = sites[0]
    common = tuple(
        form
        for form in first.forms
        if all(form in site.forms and _layouts(view, site, form) == _layouts(view, first, form) for site in sites[1:])
    )
    return (replace(site, forms=common) for site in sites)


def _inside_functions(
    skeleton: onnx.ModelProto, names: _ReportNames, kept: Mapping[FunctionKey, str]
) -> Iterator[Skipped]:
    for function in skeleton.functions:
        path = f"{function.domain}::{function.name}"
        why = kept.get(function_key(function))
        pending = list(function.node)
        for index, node in enumerate(pending):
            pending.extend(inner for _, graph in child_graphs(node) for inner in graph.node)
            if node.op_type in _WEIGHTED and default_domain(node.domain) == RULE_OF[node.op_type].domain:
                label = node.name or next(iter(node.output), "") or f"{node.op_type}_{index}"
                name = names.claim(f"{path}/{label}", index)
                reason = f"inside model-local function '{path}', which is kept as it is"
                yield Skipped(name, node.op_type, f"{reason}: {why}" if why else reason)
