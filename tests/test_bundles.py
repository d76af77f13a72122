from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.bundles import apart, find_bundles, members_of
from lowrank_onnx.candidates import Candidate, PlannedWeight
from lowrank_onnx.choose import choose_together, smallest_share
from lowrank_onnx.forms import MATRIX, PAIR, SHARED, Shared
from lowrank_onnx.types import Array, Curves, MatrixShape, Spectrum

SIDE = 64
SHAPE = MatrixShape(1, SIDE, SIDE)


def member(name: str, lead: bool, size: int = 2) -> PlannedWeight:
    return PlannedWeight(name, SHAPE, (PAIR, Shared("a", lead, size, size * SIDE)), positions=10)


BUNDLE = [member("a", True), member("b", False)]


def curves(alone: Array, shared: Array) -> Curves:
    """Singular values of one weight by itself, and its share of those of the concatenated weight."""
    energy = float(np.sum(alone**2))
    return {MATRIX: Spectrum(alone[None], energy), SHARED: Spectrum(shared[None], energy)}


VALUES = 0.9 ** np.arange(float(SIDE))
ALIKE = {name: curves(VALUES, VALUES) for name in "ab"}
"""Weights whose columns span the same: what is captured of each at a rank is what it would have by itself."""
UNLIKE = {name: curves(VALUES, np.repeat(VALUES, 2) * 0.5**0.5) for name in "ab"}
"""Weights whose columns have nothing in common: it takes twice the rank."""


def test_items_are_found_in_order_and_only_where_complete() -> None:
    single = PlannedWeight("c", SHAPE, (PAIR,), 10)
    found = find_bundles([BUNDLE[0], single, BUNDLE[1]])
    assert [[weight.name for weight in bundle.weights] for bundle in found] == [["a", "b"], ["c"]]
    assert [[weight.name for weight in bundle.weights] for bundle in find_bundles(BUNDLE[:1])] == [["a"]]
    assert find_bundles(BUNDLE[:1])[0].forms == ()


CANDIDATES = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 1.0)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(CANDIDATES, min_size=2, max_size=3), st.floats(1e-3, 1.0))
def test_for_any_price_of_cost_the_merged_hulls_hold_the_best_of_all_combinations(
    members: list[list[tuple[int, float]]], price: float
) -> None:
    alone = [[Candidate("pair", 1, cost, None, error) for cost, error in one] for one in members]

    def best(found: list[Candidate]) -> float:
        return min(one.error + price * one.parameters for one in found)

    merged = apart(alone, lambda candidate: candidate.parameters)
    combined = [sum(best([one]) for one in combination) for combination in itertools.product(*alone)]
    assert best(list(merged)) == pytest.approx(min(combined))
    assert [one.parameters for one in merged] == sorted(one.parameters for one in merged)
    assert all(len(members_of([one])) == len(alone) for one in merged)


def test_alike_weights_are_planned_together_and_unlike_ones_apart() -> None:
    for known, forms in ((ALIKE, {"shared"}), (UNLIKE, {"pair", "dense"})):
        choices, plan = choose_together(BUNDLE, known, cost="parameters", share=0.6, rank_multiple=8)
        assert {choice.candidate.form for choice in choices} <= forms
        assert plan.cost == sum(choice.candidate.parameters for choice in choices) <= 0.6 * 2 * SIDE * SIDE
    (first, second), _ = choose_together(BUNDLE, ALIKE, cost="parameters", share=0.6, rank_multiple=8)
    assert first.candidate.rank == second.candidate.rank == 24
    assert (first.candidate.parameters, second.candidate.parameters) == (24 * 2 * SIDE, 24 * SIDE)


def test_a_member_without_its_partners_is_planned_by_itself() -> None:
    choices, _ = choose_together(BUNDLE[:1], ALIKE, cost="parameters", share=0.6, rank_multiple=8)
    assert choices[0].candidate.form == "pair"


def test_choices_come_in_the_order_of_the_weights() -> None:
    single = replace(BUNDLE[0], name="c", forms=(PAIR,))
    known = {**ALIKE, "c": ALIKE["a"]}
    choices, _ = choose_together([BUNDLE[0], single, BUNDLE[1]], known, cost="macs", share=0.5, rank_multiple=8)
    assert [choice.candidate.form for choice in choices] in (
        ["shared", "pair", "shared"],
        ["shared", "dense", "shared"],
    )


def test_a_bundle_that_does_not_hold_is_planned_apart() -> None:
    choices, _ = choose_together(
        BUNDLE,
        ALIKE,
        cost="parameters",
        share=0.6,
        rank_multiple=8,
        holds=lambda weight, candidate: candidate.form != "shared",
    )
    assert {choice.candidate.form for choice in choices} <= {"pair", "dense"}


def test_the_smallest_share_is_that_of_the_bundle_where_that_is_less() -> None:
    least = smallest_share(BUNDLE, cost="parameters", rank_multiple=8)
    assert least == 8 * 3 * SIDE / (2 * SIDE * SIDE)
    assert smallest_share(BUNDLE[:1], cost="parameters", rank_multiple=8) == 8 * 2 * SIDE / SIDE**2


def test_a_bundle_is_as_fast_as_measured() -> None:
    """By latency too the members are one item: shared they take a quarter, apart each half."""

    def latency(form: str, rank: int | None) -> float:
        return 1.0 if rank is None else 0.25 if form == "shared" else 0.5

    timed = [replace(weight, latency=latency) for weight in BUNDLE]
    choices, plan = choose_together(timed, ALIKE, cost="latency", share=0.3, rank_multiple=8, only_faster=True)
    assert {choice.candidate.form for choice in choices} == {"shared"}
    assert plan.feasible
