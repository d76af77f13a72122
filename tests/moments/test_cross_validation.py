from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.linalg import factor
from lowrank_onnx.moments import cross_validation
from lowrank_onnx.moments.cross_validation import PULLS, Validated, validate_shrinkage
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.types import Array

RANKS = (2, 4, 8)


def moment_of(rows: Array) -> Moment:
    return Moment((rows.T @ rows / len(rows))[None], rows.mean(axis=0)[None], len(rows), len(rows))


def parts_of(rows: Array, count: int = 4) -> list[Moment]:
    return [moment_of(rows[part::count]) for part in range(count)]


def drawn(count: int, size: int, decay: float, seed: int = 0) -> Array:
    """Rows whose true second moment is diagonal, with eigenvalues that fall by `decay`."""
    return np.asarray(np.random.default_rng(seed).standard_normal((count, size)) * decay ** (np.arange(size) / 2))


def weight_of(size: int, out: int) -> Array:
    return np.asarray(np.random.default_rng(9).standard_normal((1, size, out)))


def validated(weight: Array, rows: Array, least: float = 0.0) -> Validated:
    found = validate_shrinkage(weight, parts_of(rows), least, RANKS)
    assert found is not None
    return found


def test_many_rows_of_uneven_inputs_are_believed() -> None:
    found = validated(weight_of(24, 16), drawn(4000, 24, 0.7))
    assert found.share == 0.0
    assert all(honest == pytest.approx(tail, rel=0.2) for tail, honest in found.tails)


def test_few_rows_of_even_inputs_are_not() -> None:
    found = validated(weight_of(64, 32), drawn(8, 64, 1.0))
    assert found.share >= 0.6


def test_what_few_rows_hide_is_found_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "PULLS", (0.0,))
    found = validated(weight_of(64, 32), drawn(8, 64, 0.97))
    assert found.tails[0][0] < 0.5 * found.tails[0][1]
    assert all(tail < honest for tail, honest in found.tails)
    # Eight directions show all that there is of eight rows: what that is worth, no tail can tell.
    assert len(found.tails) == len(RANKS) - 1


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("held_out", [None, 1, 2])
def test_the_error_on_a_part_is_that_of_the_factors_made_of_the_others(
    held_out: int | None, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "PULLS", (0.3,))
    weight, rows = weight_of(*shape), drawn(32, shape[0], 0.9)
    missed = energy = 0.0
    for part in range(held_out or 4):
        others = np.concatenate([rows[other::4] for other in range(4) if other != part])
        C = others.T @ others / len(others)
        pulled = 0.7 * C + 0.3 * np.trace(C) / len(C) * np.eye(len(C))
        made = factor(weight[0], 4, method="svd", second_moment=pulled)
        held = rows[part::4]
        missed += float(np.linalg.norm(held @ (weight[0] - made.left @ made.right))) ** 2
        energy += float(np.linalg.norm(held @ weight[0])) ** 2
    found = validate_shrinkage(weight, parts_of(rows), 0.0, (4,), held_out)
    assert found is not None
    ((_, honest),) = found.tails
    assert honest == pytest.approx(missed / energy, rel=1e-6)


def test_every_group_counts() -> None:
    weight = np.concatenate((weight_of(24, 16), weight_of(24, 16)))
    first, second = (parts_of(drawn(400, 24, decay)) for decay in (0.7, 0.9))
    both = [
        Moment(np.concatenate((a.second_moment, b.second_moment)), np.concatenate((a.mean, b.mean)), a.rows, a.rows)
        for a, b in zip(first, second, strict=True)
    ]
    found = validate_shrinkage(weight, both, 0.0, RANKS)
    alone = validate_shrinkage(weight[:1], first, 0.0, RANKS)
    assert found is not None
    assert alone is not None
    assert found.tails[0][1] > alone.tails[0][1]


def test_what_can_not_be_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows = weight_of(24, 16), drawn(16, 24, 0.9)
    assert validate_shrinkage(weight, parts_of(rows)[:1], 0.0, RANKS) is None
    assert validate_shrinkage(weight, parts_of(rows), 0.0, ()) is None
    assert validate_shrinkage(weight, parts_of(0.0 * rows), 0.0, RANKS) is None
    monkeypatch.setattr(cross_validation, "LARGEST_SIDE", 15)
    assert validate_shrinkage(weight, parts_of(rows), 0.0, RANKS) is None


def test_the_least_share_is_the_least() -> None:
    assert validated(weight_of(24, 16), drawn(4000, 24, 0.7), least=0.25).share == 0.25
    assert PULLS[0] == 0.0
    assert PULLS[-1] == 1.0


def test_one_constant_input_gives_finite_tails() -> None:
    found = validated(weight_of(24, 16), np.tile(drawn(1, 24, 0.9), (8, 1)))
    assert all(0.0 <= honest <= 1.0 for _, honest in found.tails)
    assert 0.0 <= found.honest(0.5) <= 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6), st.integers(0, 5))
def test_honest_tails_never_fall_and_agree_where_nothing_or_all_is_kept(tails: list[float], seed: int) -> None:
    found = validated(weight_of(24, 16), drawn(12, 24, 0.95, seed))
    honest = [found.honest(tail) for tail in sorted(tails)]
    assert honest == sorted(honest)
    assert found.honest(0.0) == 0.0
    assert found.honest(1.0) == pytest.approx(1.0)
