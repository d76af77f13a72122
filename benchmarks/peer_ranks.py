"""How other work divides a budget among weights: the same ratio for all, or greedily by what each layer alone does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.planning_variants import Workbench
from lowrank_onnx.choose import CostName
from lowrank_onnx.forms import Form
from lowrank_onnx.sensitivity.damage import Sensitivity
from lowrank_onnx.types import WeightRef
from lowrank_onnx.weights import SharedWeight

SMALLEST = 32
"""Rows or columns below which a weight is left dense."""

Ranks = Mapping[WeightRef, tuple[Form, int]]
"""The form and the rank of every weight that isn't left dense."""


def uniform_ranks(
    bench: Workbench, cost: CostName, share: float, form_of: Callable[[SharedWeight], Form]
) -> tuple[Ranks, float]:
    """Every weight at the same share of its own cost, such that all together come to `share`; and what that keeps.

    A convolution that the graph begins with stays as it is: the papers cut blocks, not what embeds their input.
    """
    large = [group for group in bench.groups if is_large(group) and not _is_stem(bench, group)]

    def ranks_at(ratio: float) -> Ranks:
        found = {group.weight: (form_of(group), largest_rank(group, form_of(group), ratio)) for group in large}
        return {weight: entry for weight, entry in found.items() if entry[1]}

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept_share(bench, cost, ranks_at(middle)) <= share else (low, middle)
    ranks = ranks_at(low)
    return ranks, kept_share(bench, cost, ranks)


def greedy_ranks(
    bench: Workbench,
    cost: CostName,
    share: float,
    options: Mapping[WeightRef, Sequence[tuple[Form, int]]],
    measured: Sequence[Sensitivity],
) -> tuple[Ranks, float]:
    """The least error for which every layer, taken alone to its smallest rank within that error, meets the share."""
    errors = {m.weight: dict(zip(m.ranks, m.output_errors, strict=True)) for m in measured}

    def ranks_at(limit: float) -> Ranks:
        found = {}
        for weight, by_rank in errors.items():
            fits = [entry for entry in options[weight] if by_rank.get(entry[1], float("inf")) <= limit]
            if fits:
                found[weight] = fits[0]
        return found

    ranks: Ranks = {}
    for limit in sorted({error for by_rank in errors.values() for error in by_rank.values()}):
        ranks = ranks_at(limit)
        if kept_share(bench, cost, ranks) <= share:
            break
    return ranks, kept_share(bench, cost, ranks)


def kept_share(bench: Workbench, cost: CostName, ranks: Ranks) -> float:
    """The share of parameters or MACs of all weights that are left at these ranks."""
    kept = dense = 0
    for group in bench.groups:
        applied = 1 if cost == "parameters" else bench.positions(group) or 0
        dense += applied * group.shape.parameters
        form, rank = ranks.get(group.weight, (None, 0))
        kept += applied * group.shape.parameters if form is None else _cost(group, form, rank, cost, applied)
    return kept / dense


def _cost(group: SharedWeight, form: Form, rank: int, cost: CostName, positions: int) -> int:
    return form.parameters(group.shape, rank) if cost == "parameters" else form.macs(group.shape, rank, positions)


def largest_rank(group: SharedWeight, form: Form, ratio: float) -> int:
    """The largest rank at which a form stores at most this share of the weight; 0 where there is none."""
    low, high = 0, min(form.largest_useful_rank(group.shape), group.shape.max_rank)
    while low < high:
        middle = (low + high + 1) // 2
        fits = form.parameters(group.shape, middle) <= ratio * group.shape.parameters
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def is_large(group: SharedWeight) -> bool:
    """Whether a weight has rows and columns enough to be cut like any other."""
    return min(group.shape.in_features, group.shape.out_features) >= SMALLEST


def _is_stem(bench: Workbench, group: SharedWeight) -> bool:
    return group is bench.groups[0] and group.sites[0].op_type == "Conv"
