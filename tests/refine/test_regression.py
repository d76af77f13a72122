from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.refine.regression import Regression, RegressionSum
from lowrank_onnx.refine.solve import is_usable
from lowrank_onnx.types import Array


def add_up(X: Array, inputs: Array, D: Array | None, W: Array, chunk: int) -> Regression:
    with gram_threads() as executor:
        total = RegressionSum(W, executor)
        start = 0
        while start < X.shape[1]:
            stop = min(start + min(chunk, total.room), X.shape[1])
            total.add(X[:, start:stop], inputs[:, start:stop], None if D is None else D[:, start:stop])
            start = stop
        return total.finish()


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 700),
    features=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunk=st.integers(1, 300),
    carried=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_error_of_a_product_is_that_of_the_rows(
    groups: int, rows: int, features: tuple[int, int], chunk: int, carried: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    X, inputs = (generator.standard_normal((groups, rows, features[0])) for _ in range(2))
    W = generator.standard_normal((groups, *features))
    D = generator.standard_normal((groups, rows, features[1])) if carried else None
    M = generator.standard_normal((groups, *features))
    found = add_up(X, inputs, D, W, chunk)
    T = X @ W + (0.0 if D is None else D)
    assert found.rows == rows
    expected = np.linalg.norm(inputs @ M - T) / np.linalg.norm(T)
    assert found.error(M) == pytest.approx(expected, rel=1e-9)
    part = found.of_columns(np.arange(1))
    expected = np.linalg.norm(inputs @ M[..., :1] - T[..., :1]) / np.linalg.norm(T[..., :1])
    assert part.error(M[..., :1]) == pytest.approx(expected, rel=1e-9)


def test_a_target_of_zeros_has_no_relative_error() -> None:
    found = add_up(np.zeros((1, 3, 2)), np.ones((1, 3, 2)), None, np.ones((1, 2, 2)), 3)
    assert found.error(np.ones((1, 2, 2))) == 0.0


@pytest.mark.parametrize(
    ("rows", "usable"), [(np.ones((1, 3, 2)), True), (np.zeros((1, 3, 2)), False), (np.zeros((1, 0, 2)), False)]
)
def test_what_can_be_solved(rows: Array, usable: bool) -> None:
    assert is_usable(add_up(rows, rows, None, np.ones((1, 2, 2)), 3)) is usable


def test_what_overflows_cannot_be_solved() -> None:
    rows = np.full((1, 3, 2), 1e30, np.float32)
    assert not is_usable(add_up(rows, rows, None, np.ones((1, 2, 2), np.float32), 3))
