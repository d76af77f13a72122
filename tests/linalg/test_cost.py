from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.linalg.chebyshev import has_room
from lowrank_onnx.linalg.cost import rank_plans
from lowrank_onnx.linalg.krylov import block_width, planned_dimension


@given(st.integers(1, 6000), st.integers(1, 30000), st.data())
def test_the_exact_solver_always_stands_by_and_the_cheapest_is_first(
    side: int, extra: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, side))
    choices = rank_plans(side + extra, side, rank)
    assert [c.plan for c in choices].count("eigen") == 1
    assert [c.cost for c in choices] == sorted(c.cost for c in choices)
    for choice in choices:
        assert choice.cost > 0.0
        if choice.plan == "chebyshev":
            assert has_room(rank, side)
        elif choice.plan != "eigen":
            block = block_width(rank, side * (side + extra))
            assert planned_dimension(rank, block, 1.02) + block <= choice.limit <= side


def test_known_choices() -> None:
    assert rank_plans(768, 768, 384)[0].plan == "eigen"
    assert rank_plans(768, 768, 192)[0].plan == "chebyshev"
    assert rank_plans(4096, 4096, 200)[0].plan == "krylov-direct"
    assert rank_plans(4096, 4096, 2048)[0].plan == "eigen"
    assert rank_plans(25088, 4096, 512)[0].plan == "chebyshev"
    assert rank_plans(25088, 4096, 200)[0].plan == "krylov-direct"
    assert rank_plans(40000, 2000, 150)[0].plan == "chebyshev"
    assert rank_plans(50, 10, 2)[0].plan == "eigen"
