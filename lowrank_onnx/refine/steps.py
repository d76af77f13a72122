"""What is solved together, in which order, and against which target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx

from lowrank_onnx.forms import ConvChain, Form
from lowrank_onnx.moments.row_layout import Columns, LastAxis, Patches, RowLayout, find_row_layout
from lowrank_onnx.passes.dataflow import Dataflow, Precedence
from lowrank_onnx.passes.residual import Residual, find_residual
from lowrank_onnx.passes.summing import find_summing_sites
from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.types import MatrixShape, Site, WeightRef

MAX_EQUATION_BYTES = 2**31
"""Of what is solved for one site at once (`solved_bytes`)."""


@dataclass(frozen=True, slots=True)
class Member:
    """One weight of a step, its only site, the sum that this writes into, or else what all its outputs end in."""

    replaced: Replaced
    residual: Residual | None
    summing: tuple[Site, ...] = ()

    @property
    def site(self) -> Site:
        """The only site of the weight."""
        return self.replaced.group.sites[0]


@dataclass(frozen=True, slots=True)
class Step:
    """Sites that read the same rows of the same value: their equations have the left side in common.

    Attributes
    ----------
    cut : how many nodes of the order run before it.
    value : what the sites read.
    layout : how the rows lie in it.
    members : one for each site; a site that writes into a sum is alone.
    """

    cut: int
    value: str
    layout: RowLayout
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """The order in which nodes run, the steps in that order, and for each other weight why it isn't solved again."""

    order: tuple[int, ...]
    steps: tuple[Step, ...]
    reasons: Mapping[WeightRef, str]


def plan_steps(
    flow: Dataflow,
    weights: Sequence[Replaced],
    sites: Sequence[Site] = (),
    rows: Mapping[str, int] = MappingProxyType({}),
) -> Steps:
    """Arrange the weights that were replaced by factors.

    A site that writes into a sum comes after the other term of the sum, where that doesn't depend on it.

    Parameters
    ----------
    sites : all of the model, of which some may sum over the outputs of these weights.
    rows : about how many there are of what a site reads, by its name; as many as features where that isn't known.
    """
    reasons: dict[WeightRef, str] = {}
    precedence = Precedence(flow)
    solvable: list[tuple[Member, RowLayout]] = []
    for replaced in weights:
        layout = _layout(flow.skeleton, replaced, rows)
        if isinstance(layout, str):
            reasons[replaced.weight] = layout
            continue
        site = replaced.group.sites[0]
        alone = replaced.form.bundle is None
        residual = find_residual(flow, site) if alone and output_layout(flow.skeleton, site) is not None else None
        if residual is not None and not precedence.demand(site.node_index, residual.carried):
            residual = None
        summing = find_summing_sites(flow, site, sites) if alone and residual is None else ()
        solvable.append((Member(replaced, residual, summing), layout))
    solvable = _without_parts_of_bundles(solvable, reasons)
    order = precedence.order()
    places = {node: place for place, node in enumerate(order)}
    together: dict[object, list[tuple[int, Member, RowLayout]]] = {}
    for member, layout in solvable:
        place = places.get(member.site.node_index)
        if place is None:
            reasons[member.replaced.weight] = "no output of the model depends on it"
            continue
        key = place if member.residual else (member.site.input, layout, member.site.weight.dtype)
        together.setdefault(key, []).append((place, member, layout))
    steps = [
        Step(min(place for place, _, _ in found), found[0][1].site.input, found[0][2], tuple(m for _, m, _ in found))
        for found in together.values()
    ]
    return Steps(order, tuple(sorted(steps, key=lambda step: step.cut)), reasons)


def _without_parts_of_bundles(
    solvable: Sequence[tuple[Member, RowLayout]], reasons: dict[WeightRef, str]
) -> list[tuple[Member, RowLayout]]:
    """Those that share a first factor can only be solved all together."""

    def key(member: Member, layout: RowLayout) -> tuple[object, ...]:
        return member.replaced.form.bundle, member.site.input, layout

    found = Counter(key(member, layout) for member, layout in solvable)
    kept = []
    for member, layout in solvable:
        if member.replaced.form.bundle is None or found[key(member, layout)] == member.replaced.form.bundle_size:
            kept.append((member, layout))
        else:
            reasons[member.replaced.weight] = "others that share its first factor can't be solved again"
    return kept


def _layout(skeleton: onnx.ModelProto, replaced: Replaced, rows: Mapping[str, int]) -> RowLayout | str:
    group = replaced.group
    if len(group.sites) > 1:
        return f"its weight is shared by {len(group.sites)} nodes, whose inputs don't change alike"
    layout = find_row_layout(skeleton, group.sites[0])
    shape = group.shape
    known = rows.get(group.sites[0].name, shape.in_features)
    few = takes_rows(replaced.form) and are_few(known, shape.in_features, shape.out_features)
    needed = solved_bytes(shape, known if few else None)
    if not isinstance(layout, str) and needed > MAX_EQUATION_BYTES:
        return f"its equations take {needed} bytes, more than the {MAX_EQUATION_BYTES} allowed"
    return layout


def are_few(rows: int, in_features: int, out_features: int) -> bool:
    """Whether solving from so many rows themselves takes less than from their equations."""
    return rows + out_features <= in_features


def takes_rows(form: Form) -> bool:
    """Whether the form can be solved from few rows, without their equations."""
    return not isinstance(form, ConvChain)


def solved_bytes(shape: MatrixShape, rows: int | None) -> int:
    """What solving takes: of the equations of the feeds that are solved for, of the others, of all and of a solution.

    Of few rows, where `rows` says how many: they themselves twice, the weight three times, and products of its outputs.
    """
    groups, in_features, out_features = shape.groups, shape.in_features, shape.out_features
    if rows is None:
        return 4 * 8 * groups * in_features * (in_features + out_features)
    both = in_features + out_features
    return 4 * groups * (2 * rows * both + 3 * in_features * out_features + 6 * out_features**2)


def output_layout(skeleton: onnx.ModelProto, site: Site) -> RowLayout | None:
    """How the rows of y = x @ W lie in a site's output, in the order of the rows of x; None where they don't.

    Those of a transposed convolution don't: an output is the sum of what several positions scatter.
    """
    node = skeleton.graph.node[site.node_index]
    shape = site.shape
    match site.op_type:
        case "MatMul" | "Gemm":
            weight_on_the_right = node.input[0] == site.input
            return LastAxis(shape.out_features) if weight_on_the_right else Columns(shape.out_features)
        case "Conv":
            spatial = len(site.weight.shape) - 2
            ones, zeros = (1,) * spatial, (0,) * (2 * spatial)
            return Patches(shape.groups, shape.out_features, ones, ones, ones, zeros, "NOTSET")
    return None
