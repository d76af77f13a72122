from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.refine.regression import JudgedRows, Regression, RegressionSum, RowList, RowSink
from lowrank_onnx.refine.solve import can_judge, is_usable
from lowrank_onnx.types import Array


def add_up(X: Array, inputs: Array, D: Array | None, W: Array, chunk: int) -> tuple[Regression, JudgedRows]:
    with gram_threads() as executor:
        total, rows = RegressionSum(W, executor), RowList(W)
        sinks: tuple[RowSink, ...] = (total, rows)
        for sink in sinks:
            start = 0
            while start < X.shape[1]:
                stop = min(start + min(chunk, sink.room), X.shape[1])
                sink.add(X[:, start:stop], inputs[:, start:stop], None if D is None else D[:, start:stop])
                start = stop
        return total.so_far(), rows.finish()


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 700),
    features=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunk=st.integers(1, 300),
    carried=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_equations_and_the_kept_rows_are_those_that_were_added(
    groups: int, rows: int, features: tuple[int, int], chunk: int, carried: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    X, inputs = (generator.standard_normal((groups, rows, features[0])) for _ in range(2))
    W = generator.standard_normal((groups, *features))
    D = generator.standard_normal((groups, rows, features[1])) if carried else None
    M = generator.standard_normal((groups, *features))
    equations, judged = add_up(X, inputs, D, W, chunk)
    T = X @ W + (0.0 if D is None else D)
    assert equations.rows == judged.rows == rows
    np.testing.assert_allclose(equations.gram, inputs.transpose(0, 2, 1) @ inputs / rows, atol=1e-12)
    np.testing.assert_allclose(equations.cross, inputs.transpose(0, 2, 1) @ T / rows, atol=1e-12)
    np.testing.assert_allclose(equations.energy, np.mean(T**2, axis=1), rtol=1e-12)
    first = np.arange(1)
    for columns, found in ((slice(None), judged), (first, judged.of_columns(first))):
        expected = np.linalg.norm(inputs @ M[..., columns] - T[..., columns]) / np.linalg.norm(T[..., columns])
        assert found.error(M[..., columns]) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(equations.of_columns(first).cross, equations.cross[..., first])


def test_a_target_of_zeros_has_no_relative_error() -> None:
    _, judged = add_up(np.zeros((1, 3, 2)), np.ones((1, 3, 2)), None, np.ones((1, 2, 2)), 3)
    assert judged.error(np.ones((1, 2, 2))) == 0.0


@pytest.mark.parametrize(
    ("rows", "usable"), [(np.ones((1, 3, 2)), True), (np.zeros((1, 3, 2)), False), (np.zeros((1, 0, 2)), False)]
)
def test_what_can_be_solved(rows: Array, usable: bool) -> None:
    equations, judged = add_up(rows, rows, None, np.ones((1, 2, 2)), 3)
    assert is_usable(equations) is usable
    assert can_judge(judged) is usable


def test_what_overflows_cannot_be_solved() -> None:
    weight = np.ones((1, 2, 2), np.float32)
    equations, judged = add_up(*(np.full((1, 3, 2), 1e30, np.float32),) * 2, None, weight, 3)
    assert not is_usable(equations)
    assert can_judge(judged)  # the rows themselves are finite
    assert not can_judge(JudgedRows(judged.inputs, np.full_like(judged.targets, np.inf)))


def test_a_product_that_overflows_is_infinitely_wrong() -> None:
    weight = np.ones((1, 2, 2), np.float32)
    _, judged = add_up(*(np.ones((1, 3, 2), np.float32),) * 2, None, weight, 3)
    assert judged.error(weight * np.float32(3e38)) == np.inf
