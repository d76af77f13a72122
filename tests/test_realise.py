from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.candidates import Candidate, PlannedWeight
from lowrank_onnx.choose import choose_together
from lowrank_onnx.forms import MATRIX, PAIR, PIVOTED, Pivoted
from lowrank_onnx.realise import Realiser
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Curves, Factors, MatrixShape, Spectrum, WeightRef

SIDE, RANK = 48, 12


def decaying(seed: int = 0) -> Array:
    """A square matrix whose singular values fall slowly."""
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
    return np.asarray((u * np.arange(1.0, SIDE + 1) ** -0.5) @ v.T)


def with_twins(*firsts: int) -> Array:
    """The column after each of these is all but the same, so that a block with both is all but singular."""
    matrix = decaying()
    for first in firsts:
        matrix[:, first + 1] = matrix[:, first] + 1e-7 * matrix[:, first + 1]
    return matrix


def realiser(matrix: Array, directory: Path, dtype: str = "float32") -> tuple[Realiser, PlannedWeight, Curves]:
    ref = WeightRef((), "w", "initializer", dtype, matrix.shape)
    u, s, vt = np.linalg.svd(matrix)
    root = np.sqrt(s)
    left, right = (u * root).astype(np.float32), (root[:, None] * vt).astype(np.float32)
    spool = FactorSpool(directory)
    spool.put_nested(ref, MATRIX, PAIR, Factors(left[None], right[None], s[None], 0.0, 0.0, "svd"))
    weight = PlannedWeight("w", MatrixShape(1, *matrix.shape), (PAIR, PIVOTED), 10)
    curves: Curves = {MATRIX: Spectrum(s[None], float(np.sum(s**2)))}
    return Realiser(spool, {"w": ref}, {"w": curves}, {}, 0), weight, curves


def candidate(form: str, rank: int = RANK) -> Candidate:
    return Candidate(form, rank, 0, None, 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_pivoted_form_that_holds_is_made_and_is_the_same_approximation(dtype: str, tmp_path: Path) -> None:
    made, weight, _ = realiser(decaying(), tmp_path, dtype)
    assert made.holds(weight, candidate("pivoted"))
    ref = made.refs["w"]
    stored, pair = made.spool.get(ref, PIVOTED, RANK), made.spool.get(ref, PAIR, RANK)
    assert stored.solver == "svd, pivoted"
    parts = {part: stored.values(part).astype(np.float64) for part in stored.files}
    exact = pair.values("left").astype(np.float64) @ pair.values("right").astype(np.float64)
    np.testing.assert_allclose(stored.form.approximate(parts), exact, atol=1e-5)
    missed = np.linalg.norm(stored.approximate() - exact)
    assert missed <= 0.1 * np.linalg.norm(decaying()[None] - exact)


@pytest.mark.parametrize(
    ("twins", "starts"),
    [
        ((), {0, SIDE - RANK}),
        ((0,), {SIDE - RANK}),
        ((SIDE - 2,), {0}),
        ((0, SIDE - 2), {(SIDE - RANK) // 2, (SIDE - RANK) // 4, 3 * (SIDE - RANK) // 4}),
    ],
)
def test_pivots_that_would_round_badly_are_passed_over(
    twins: tuple[int, ...], starts: set[int], tmp_path: Path
) -> None:
    made, weight, _ = realiser(with_twins(*twins), tmp_path)
    assert made.holds(weight, candidate("pivoted"))
    form = made.spool.get(made.refs["w"], PIVOTED, RANK).form
    assert isinstance(form, Pivoted)
    assert form.start in starts


EVERYWHERE = range(0, SIDE, 8)
"""Every block of `RANK` columns has twins."""


def test_with_no_sound_block_it_does_not_hold_and_nothing_is_kept(tmp_path: Path) -> None:
    made, weight, _ = realiser(with_twins(*EVERYWHERE), tmp_path)
    assert not made.holds(weight, candidate("pivoted"))
    with pytest.raises(KeyError):
        made.spool.get(made.refs["w"], PIVOTED, RANK)


def test_forms_that_lie_in_the_spool_always_hold(tmp_path: Path) -> None:
    made, weight, _ = realiser(with_twins(*EVERYWHERE), tmp_path)
    assert made.holds(weight, candidate("pair"))


def test_the_plan_takes_another_candidate_where_one_does_not_hold(tmp_path: Path) -> None:
    made, weight, curves = realiser(with_twins(*EVERYWHERE), tmp_path)
    (choice,), plan = choose_together(
        [weight], {"w": curves}, cost="parameters", share=0.6, rank_multiple=4, holds=made.holds
    )
    assert (choice.candidate.form, choice.candidate.rank) == ("pair", 12)
    assert plan.cost <= 0.6 * SIDE * SIDE
    (free,), _ = choose_together([weight], {"w": curves}, cost="parameters", share=0.6, rank_multiple=4)
    assert (free.candidate.form, free.candidate.rank) == ("pivoted", 16)
