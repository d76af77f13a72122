from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.refine import regression
from lowrank_onnx.refine.known import KeptRows, RowList
from lowrank_onnx.refine.regression import Regression, RegressionSum
from lowrank_onnx.types import Array


def add_up(inputs: Array, targets: Array, chunk: int, through: Array | None = None) -> tuple[Regression, KeptRows]:
    with gram_threads() as executor:
        shape = (inputs.shape[0], inputs.shape[2], targets.shape[2])
        total, rows = RegressionSum(shape, inputs.dtype, executor, through), RowList(shape, inputs.dtype)
        for start in range(0, inputs.shape[1], chunk):
            X, T = (side[:, start : start + chunk] for side in (inputs, targets))
            total.add(total.summand(X, T))
            rows.add(X, T)
        return total.finish(), rows.finish()


@pytest.fixture(params=[0, 768], ids=["divided among threads", "each part in a thread"])
def _largest_apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "MULTIPLIED_APART", request.param)


@pytest.mark.usefixtures("_largest_apart")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 2500),
    features=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunk=st.integers(1, 1500),
    seed=st.integers(0, 5),
)
def test_the_equations_and_the_kept_rows_are_those_that_were_added(
    groups: int, rows: int, features: tuple[int, int], chunk: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((groups, rows, features[0]))
    T = generator.standard_normal((groups, rows, features[1]))
    L, R = (generator.standard_normal((groups, *sides)) for sides in ((features[0], 2), (2, features[1])))
    equations, judged = add_up(X, T, chunk)
    assert equations.rows == judged.rows == rows
    np.testing.assert_allclose(equations.gram, X.transpose(0, 2, 1) @ X / rows, atol=1e-12)
    np.testing.assert_allclose(equations.cross, X.transpose(0, 2, 1) @ T / rows, atol=1e-12)
    np.testing.assert_allclose(equations.energy, np.mean(T**2, axis=1), rtol=1e-12)
    first = np.arange(1)
    np.testing.assert_array_equal(equations.of_columns(first).cross, equations.cross[..., first])
    for columns in (np.arange(features[1]), first):
        M = L @ R[..., columns]
        expected = np.linalg.norm(X @ M - T[..., columns]) / np.linalg.norm(T[..., columns])
        for judge in (equations.of_columns(columns), judged.of_columns(columns)):
            for factors in ((M,), (L, R[..., columns])):
                assert judge.error(factors) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("_largest_apart")
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_what_rows_are_multiplied_by_can_be_multiplied_by_afterwards(scale: float) -> None:
    generator = np.random.default_rng(0)
    X, Z = generator.standard_normal((2, 3000, 5)), scale * generator.standard_normal((2, 3000, 4))
    W = generator.standard_normal((2, 4, 9))
    expected, _ = add_up(X, Z @ W, 700)
    found, _ = add_up(X, Z, 700, through=W)
    assert found.rows == expected.rows
    for part in ("gram", "cross", "energy"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), atol=1e-11)


@pytest.mark.usefixtures("_largest_apart")
def test_what_overflows_afterwards_cannot_be_solved() -> None:
    rows = np.ones((1, 3, 2), np.float32)
    found, _ = add_up(rows, rows, 3, through=np.full((1, 2, 7), 1e200))
    assert not found.is_usable


@settings(max_examples=25, deadline=None)
@given(rows=st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_the_equations_of_two_sets_of_rows_are_those_of_all(rows: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(rows))
    X, T = generator.standard_normal((2, sum(rows), 3)), generator.standard_normal((2, sum(rows), 4))
    whole, _ = add_up(X, T, 7)
    both = add_up(X[:, : rows[0]], T[:, : rows[0]], 7)[0].with_rows_of(add_up(X[:, rows[0] :], T[:, rows[0] :], 7)[0])
    assert both.rows == whole.rows
    for part in ("gram", "cross", "energy"):
        np.testing.assert_allclose(getattr(both, part), getattr(whole, part), atol=1e-12)
    kept = add_up(X[:, : rows[0]], T[:, : rows[0]], 7)[1].with_rows_of(add_up(X[:, rows[0] :], T[:, rows[0] :], 7)[1])
    np.testing.assert_array_equal(kept.inputs, X)
    np.testing.assert_array_equal(kept.targets, T)
    np.testing.assert_allclose(kept.scales, whole.scales, atol=1e-12)


def test_a_target_of_zeros_has_no_relative_error() -> None:
    for judge in add_up(np.ones((1, 3, 2)), np.zeros((1, 3, 2)), 3):
        assert judge.error((np.ones((1, 2, 2)),)) == 0.0


def test_no_error_is_no_root_of_what_rounding_makes_of_it() -> None:
    X = np.random.default_rng(0).standard_normal((1, 500, 5))
    M = np.random.default_rng(1).standard_normal((1, 5, 7))
    for judge in add_up(X, X @ M, 100):
        assert 0.0 <= judge.error((M,)) < 1e-7


@pytest.mark.parametrize(
    ("rows", "usable"), [(np.ones((1, 3, 2)), True), (np.zeros((1, 3, 2)), False), (np.zeros((1, 0, 2)), False)]
)
def test_what_can_be_solved(rows: Array, usable: bool) -> None:
    equations, judged = add_up(rows, rows, 3)
    assert equations.is_usable is judged.is_usable is usable


def test_what_overflows_cannot_be_solved() -> None:
    equations, judged = add_up(*(np.full((1, 3, 2), 1e30, np.float32),) * 2, 3)
    assert not equations.is_usable
    assert not judged.is_usable  # their squares aren't finite
    finite = KeptRows(np.ones_like(judged.inputs), judged.targets)
    assert finite.is_usable
    assert not KeptRows(finite.inputs, np.full_like(judged.targets, np.inf)).is_usable


def test_a_product_that_overflows_is_infinitely_wrong() -> None:
    weight = np.ones((1, 2, 2), np.float32)
    _, judged = add_up(*(np.ones((1, 3, 2), np.float32),) * 2, 3)
    assert judged.error((weight * np.float32(3e38),)) == np.inf
    equations, _ = add_up(*(np.ones((1, 3, 2)),) * 2, 3)
    assert equations.error((np.full((1, 2, 2), 1e300),)) == np.inf


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.usefixtures("_largest_apart")
def test_rows_that_are_not_finite_show_without_a_warning(bad: float) -> None:
    X, T = np.ones((1, 4, 3), np.float32), np.ones((1, 4, 2), np.float32)
    broken = X.copy()
    broken[0, 0], broken[0, 1] = bad, -bad
    with gram_threads() as executor:
        total = RegressionSum((1, 3, 2), X.dtype, executor)
        assert total.summand(X, T).is_finite
        assert not total.summand(broken, T).is_finite
        assert not total.summand(X, broken[..., :2]).is_finite
