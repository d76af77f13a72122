from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.candidates import Candidate
from lowrank_onnx.planner import convex_hull, plan_budget


def candidate(cost: int, error: float) -> Candidate:
    return Candidate("pair", cost, cost, None, error)


def cost(c: Candidate) -> int:
    return c.parameters


weights = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 10)), min_size=1, max_size=5).map(
        lambda rows: [candidate(c, e) for c, e in rows]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200)
@given(weights, st.integers(0, 250))
def test_plan_keeps_the_budget_and_is_optimal_up_to_one_step(options: list[list[Candidate]], budget: int) -> None:
    plan = plan_budget(options, cost, budget)
    every = list(itertools.product(*options))
    within = [p for p in every if sum(map(cost, p)) <= budget]
    assert plan.feasible == bool(within)
    assert plan.cost == sum(map(cost, plan.choices))
    assert all(choice in row for choice, row in zip(plan.choices, options, strict=True))
    if not within:
        assert plan.cost == min(sum(map(cost, p)) for p in every)
        return
    assert plan.cost <= budget
    best = min(sum(c.error for c in p) for p in within)
    hulls = [convex_hull(row, cost) for row in options]
    largest_step = max((a.error - b.error for h in hulls for a, b in itertools.pairwise(h)), default=0.0)
    assert plan.error <= best + largest_step + 1e-9


def test_hull_drops_dominated_and_concave_points() -> None:
    points = [candidate(0, 10), candidate(1, 9), candidate(2, 2), candidate(3, 5), candidate(4, 0)]
    assert [c.parameters for c in convex_hull(points, cost)] == [0, 2, 4]


def test_more_budget_never_costs_accuracy_on_hulls() -> None:
    rows = [[candidate(10 * k, (20 - k) ** 2 * w) for k in range(21)] for w in (1.0, 5.0, 0.1)]
    errors = [plan_budget(rows, cost, budget).error for budget in range(0, 601, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0


def test_damage_goes_where_it_hurts_least() -> None:
    precious = [candidate(1, 100.0), candidate(10, 0.0)]
    cheap = [candidate(1, 1.0), candidate(10, 0.0)]
    plan = plan_budget([precious, cheap], cost, 11)
    assert [c.parameters for c in plan.choices] == [10, 1]


def test_leftover_is_spent_off_the_hull() -> None:
    row = [candidate(0, 10.0), candidate(5, 9.0), candidate(10, 0.0)]
    plan = plan_budget([row], cost, 7)
    assert plan.choices[0].parameters == 5
    assert plan.cost == 5


def test_infeasible_budget_gives_the_cheapest_and_says_so() -> None:
    plan = plan_budget([[candidate(5, 1.0), candidate(9, 0.0)]], cost, 4)
    assert not plan.feasible
    assert plan.cost == 5


def test_no_weights_is_an_empty_plan() -> None:
    plan = plan_budget([], cost, 0)
    assert plan.choices == ()
    assert plan.feasible
    assert plan.error == pytest.approx(0.0)
