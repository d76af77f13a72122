"""Logits: what a softmax ignores, the comparison ignores too. The other kinds of output are in `test_compare`."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lowrank_onnx.evaluate import accumulate
from lowrank_onnx.evaluate.accumulate import OutputAccumulator, OutputComparison
from lowrank_onnx.types import Array, OutputStatistics
from tests.evaluate.fakes import FunctionSession


def compare(*pairs: tuple[Any, Any], logits: bool = True) -> OutputStatistics:
    accumulator = OutputAccumulator("y", logits=logits)
    for original, candidate in pairs:
        accumulator.add(original, candidate)
    return accumulator.statistics()


def draw(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def figures(output: OutputStatistics) -> list[float]:
    found = (output.relative_l2, output.max_abs, output.sqnr_db, output.cosine)
    assert not output.problems
    return [math.nan if figure is None else figure for figure in found]


@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    classes=st.integers(2, 40),
    size=st.floats(0.0, 1e5),
    seed=st.integers(0, 99),
)
@hypothesis_settings(max_examples=40)
def test_a_level_of_each_row_changes_nothing_with_the_flag_and_does_without(
    lead: list[int], classes: int, size: float, seed: int
) -> None:
    y, z = draw(*lead, classes, seed=seed), draw(*lead, classes, seed=seed + 100)
    levels = [size * draw(*lead, 1, seed=seed + offset) for offset in (200, 300)]
    plain, moved = compare((y, z)), compare((y + levels[0], z + levels[1]))
    assert figures(moved) == pytest.approx(figures(plain), rel=1e-6, abs=1e-9)
    if size > 1.0:
        unaware = compare((y + levels[0], z + levels[1]), logits=False)
        assert figures(unaware) != pytest.approx(figures(plain), rel=1e-3)


def test_the_figures_are_those_of_rows_without_their_means() -> None:
    pairs = [(draw(3, 5, seed=i) + 7.0, draw(3, 5, seed=i + 9) - 2.0) for i in range(3)]
    y, z = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    y, z = ((values - values.mean(axis=1, keepdims=True)).ravel() for values in (y, z))
    output = compare(*pairs)
    assert output.logits
    assert output.relative_l2 == pytest.approx(np.linalg.norm(z - y) / np.linalg.norm(y), rel=1e-12)
    assert output.max_abs == pytest.approx(np.abs(z - y).max(), rel=1e-12)
    assert output.sqnr_db == pytest.approx(-20.0 * math.log10(output.error), rel=1e-9)
    assert output.cosine == pytest.approx(y @ z / np.linalg.norm(y) / np.linalg.norm(z), rel=1e-12)
    agreement = np.mean([pair[0].argmax(-1) == pair[1].argmax(-1) for pair in pairs])
    assert output.top1_agreement == pytest.approx(agreement)


def test_a_difference_within_a_row_is_seen_however_high_the_level() -> None:
    y = np.full((4, 16), 1e6)
    y[:, 3] += 1.0
    z = y.copy()
    z[2, 5] += 1.0
    spared = 1.0 - 1.0 / 16  # of the square of one entry, by the mean of its row
    assert compare((y, z)).relative_l2 == pytest.approx(math.sqrt(spared / (4 * spared)), rel=1e-6)
    assert compare((y, z), logits=False).error < 1e-6


@pytest.mark.parametrize("block", [1, 7, 16, 50, 1000])
@pytest.mark.parametrize("logits", [True, False])
def test_where_blocks_end_makes_no_difference(monkeypatch: pytest.MonkeyPatch, block: int, logits: bool) -> None:
    y, z = draw(2, 9, 23), draw(2, 9, 23, seed=1)
    y[0, 0, 0] = z[0, 0, 0] = -math.inf
    y += 5.0
    whole = compare((y, z), logits=logits)
    monkeypatch.setattr(accumulate, "_BLOCK", block)
    cut = compare((y, z), logits=logits)
    assert figures(cut) == pytest.approx(figures(whole), rel=1e-12)
    assert cut.common_level == pytest.approx(whole.common_level, rel=1e-12)
    assert (cut.elements, cut.top1_agreement) == (whole.elements, whole.top1_agreement)


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2), (np.float32, 1e-6)])
def test_narrow_floats(dtype: Any, rounding: float) -> None:
    y = draw(6, 64, dtype=dtype)
    z = draw(6, 64, seed=1, dtype=dtype)
    level = np.full((6, 1), 2.0, dtype)
    moved = compare((y + level, z))
    assert figures(moved) == pytest.approx(figures(compare((y, z))), rel=rounding * 4)
    assert moved.dtype == np.dtype(dtype).name


def test_masked_entries_take_no_part_in_the_mean() -> None:
    y, z = draw(5, 12) + 40.0, draw(5, 12, seed=1) - 3.0
    kept = compare((y[:, :8], z[:, :8]))
    y[:, 8:] = z[:, 8:] = -math.inf
    masked = compare((y, z))
    assert figures(masked) == pytest.approx(figures(kept), rel=1e-12)
    y[1], z[1] = -math.inf, -math.inf
    assert not compare((y, z)).problems  # a row without any entry says nothing


def test_masks_that_differ_and_not_a_number_are_problems() -> None:
    y, z = draw(2, 4), draw(2, 4, seed=1)
    for left, right, problem in (
        (-math.inf, 0.0, "1 infinities of the original are not reproduced"),
        (0.0, -math.inf, "the candidate has 1 NaN or infinite values where the original is finite"),
        (0.0, math.nan, "the candidate has 1 NaN or infinite values where the original is finite"),
        (math.nan, 0.0, "the original's output holds 1 NaN: choose other feeds"),
        (-math.inf, math.inf, "1 infinities of the original are not reproduced"),
    ):
        y[1, 2], z[1, 2] = left, right
        output = compare((y, z))
        assert output.problems == (problem,)
        assert output.relative_l2 == math.inf
        assert output.common_level is None


def test_values_too_large_for_their_mean_are_a_problem_and_no_warning() -> None:
    y = np.full((1, 4), 1.7e308)
    assert compare((y, y.copy())).problems == ("its values are too large to compare in float64",)


def test_the_share_of_a_common_level() -> None:
    y = draw(8, 32)
    y -= y.mean(axis=1, keepdims=True)
    y *= math.sqrt(y.size) / np.linalg.norm(y)  # 1 on average, and the level's square is 9
    for logits in (True, False):
        assert compare((y + 3.0, y), logits=logits).common_level == pytest.approx(0.9, rel=1e-9)
        assert compare((y, y + 3.0), logits=logits).common_level == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(64,), (8, 15), (2, 2, 4, 32)])
def test_rows_that_mean_nothing_have_no_common_level(shape: tuple[int, ...]) -> None:
    y = np.ones(shape)
    assert compare((y, y), logits=False).common_level is None
    assert compare((np.ones((8, 16)), np.ones((8, 16))), (y, y), logits=False).common_level is None
    assert compare((y, y)).common_level == 1.0  # who names them says that they do


def test_which_outputs_are_logits_is_known_by_the_original() -> None:
    y, z = {"a": draw(2, 8), "b": draw(2, 8)}, {"a": draw(2, 8) + 1.0, "b": draw(2, 8) + 1.0}
    original = FunctionSession(lambda feed: y, outputs=["a", "b"], logits=["b"])
    for names in (None, ["b", "a"]):
        comparison = OutputComparison(original, names)
        comparison.add(y, z)
        found = {output.name: output for output in comparison.statistics()}
        assert list(found) == (names or ["a", "b"])
        assert (found["a"].logits, found["b"].logits) == (False, True)
        assert found["a"].error > 0.1
        assert found["b"].error == pytest.approx(0.0, abs=1e-12)
