"""Sites that read the same tensor: which of them can share their first factor, and how each is written then.

The lead, the first in the graph, is written as its pair; the others are the pair's second node alone, on the lead's
activation. An operator says what else must agree for that (`Site.shares`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import onnx

from lowrank_onnx.forms import Shared
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import Parts, TensorLayout, Writer
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.types import Site, SiteChoice, Skipped


def offer_shared(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites in their order; those that can share their first factor with others have that form too.

    A weight that several sites use stays by itself: its factors are stored once for all of them.
    """
    users = Counter(site.weight for site in sites)
    bundles: dict[Hashable, list[Site]] = {}
    for site in sites:
        if site.shares is not None and users[site.weight] == 1:
            key = (site.scope, site.input, site.op_type, site.weight.dtype, site.shape.in_features, site.shares)
            bundles.setdefault(key, []).append(site)
    offered: dict[str, Site] = {}
    for members in bundles.values():
        if len(members) > 1:
            together = sum(site.shape.out_features for site in members)
            for site in members:
                form = Shared(members[0].name, site is members[0], len(members), together)
                offered[site.name] = replace(site, forms=(*site.forms, form))
    return tuple(offered.get(site.name, site) for site in sites)


def offer_forms(sites: Sequence[Site], names: Sequence[str]) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    """The sites with those of their forms that `names` has, sharing included; one with none of them is left out."""
    offered = offer_shared(sites)
    narrowed = [replace(site, forms=tuple(form for form in site.forms if form.name in names)) for site in offered]
    skipped = tuple(
        Skipped(
            site.name,
            site.op_type,
            f"can be written as {', '.join(form.name for form in site.forms)}, none of which is among the forms "
            f"{', '.join(names)}",
            site.shape.parameters,
        )
        for site, kept in zip(offered, narrowed, strict=True)
        if not kept.forms
    )
    return tuple(site for site in narrowed if site.forms), skipped


def shared_writer(
    layout: Callable[[onnx.NodeProto, SiteChoice], tuple[TensorLayout, ...]],
    values: Callable[[ScopeView, SiteChoice], dict[str, Dims | None]],
    emit: Callable[[Parts], tuple[Any, ...]],
) -> Writer:
    """A writer of the shared form, from those functions of the operator's pair."""

    def stored(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
        parts = choice.form.part_shapes(choice.site.shape, choice.rank)
        return tuple(entry for entry in layout(node, choice) if entry.part in parts)

    def between(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
        return values(scope, choice) if _is_lead(choice) else {}

    def written(parts: Parts) -> tuple[Any, ...]:
        if _is_lead(parts.choice):
            return emit(parts)
        # The pair's first node, on a factor that the lead has already applied, is left out.
        first, last = emit(replace(parts, tensors={"left": parts.values["mid"], **parts.tensors}))
        first.inputs.clear()
        first.outputs.clear()
        return (last,)

    return Writer(stored, between, written)


def _is_lead(choice: SiteChoice) -> bool:
    return isinstance(choice.form, Shared) and choice.form.lead
