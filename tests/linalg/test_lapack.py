from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.linalg.lapack import (
    ALL_THREADS_WORK,
    SINGLE_THREAD_WORK,
    SUBSTITUTED_AT_ONCE,
    begin_small,
    beside_runtime,
    cholesky_upper,
    solve_upper,
    solver_of_small,
    threads_for_work,
)


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_beside_a_runtime_only_large_factorizations_get_the_threads_that_there_were() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with beside_runtime():
            assert threads() == {1}
            with threads_for_work(int(ALL_THREADS_WORK) - 1):
                assert threads() == {1}
            with threads_for_work(int(ALL_THREADS_WORK)):
                assert threads() == {2}
            assert threads() == {1}
        assert threads() == {2}


def test_elsewhere_only_small_factorizations_are_held_to_one_thread() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        for work, expected in ((int(SINGLE_THREAD_WORK), 1), (int(SINGLE_THREAD_WORK) + 1, 2), (10**11, 2)):
            with threads_for_work(work):
                assert threads() == {expected}
        assert threads() == {2}


def solved(works: list[int], *, wanted: bool = True) -> tuple[list[tuple[int, str]], int]:
    """Who solved problems of so much work, in the order in which they came back; and how many were read ahead."""
    ahead = most = 0

    def problems() -> Iterator[tuple[int, Callable[[], str], int]]:
        nonlocal ahead, most
        for number, work in enumerate(works):
            ahead += 1
            most = max(most, ahead)
            yield number, lambda: threading.current_thread().name, work

    found = []
    with solver_of_small(wanted) as solve:
        for about, name in solve(problems()):
            ahead -= 1
            found.append((about, name.split("_")[0]))
    return found, most


def test_small_problems_are_solved_some_at_a_time_and_large_ones_alone() -> None:
    large = int(ALL_THREADS_WORK)
    with threadpoolctl.threadpool_limits(2, user_api="blas"), beside_runtime():
        found, most = solved([1, 1, 1, large, 1])
    assert found == [(0, "small"), (1, "small"), (2, "small"), (3, "MainThread"), (4, "small")]
    assert most <= 5


def test_elsewhere_and_where_it_is_not_wanted_one_problem_follows_the_other() -> None:
    assert solved([1, 1]) == ([(0, "MainThread"), (1, "MainThread")], 1)
    with threadpoolctl.threadpool_limits(2, user_api="blas"), beside_runtime():
        assert solved([1, 1], wanted=False) == ([(0, "MainThread"), (1, "MainThread")], 1)


def begun(work: int) -> list[str]:
    """Which of two problems that were begun were solved, if only the second one is asked for, and by whom."""
    solved: list[str] = []

    def problem(name: str) -> str:
        solved.append(f"{name} {threading.current_thread().name.split('_')[0]}")
        return name

    with begin_small(work) as begin:
        first, second = (begin(partial(problem, name)) for name in ("first", "second"))
        assert second() == second() == "second"
        if len(solved) > 1:
            assert first() == "first"
    return sorted(solved)


def test_what_is_begun_is_solved_in_other_threads_where_it_is_small() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"), beside_runtime():
        assert begun(1) == ["first small", "second small"]
        assert begun(int(ALL_THREADS_WORK)) == ["second MainThread"]


def test_elsewhere_what_is_begun_is_solved_when_it_is_asked_for() -> None:
    assert begun(1) == ["second MainThread"]
    with threadpoolctl.threadpool_limits(1, user_api="blas"), beside_runtime():
        assert begun(1) == ["second MainThread"]


def test_a_problem_that_was_begun_raises_where_it_is_asked_for() -> None:
    def fail() -> None:
        raise ValueError("no")

    with (
        threadpoolctl.threadpool_limits(2, user_api="blas"),
        beside_runtime(),
        begin_small(1) as begin,
        pytest.raises(ValueError, match="no"),
    ):
        begin(fail)()


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 3 * SUBSTITUTED_AT_ONCE),
    columns=st.integers(0, 20),
    wide=st.booleans(),
    transposed=st.booleans(),
)
def test_triangular_equations_are_solved(size: int, columns: int, wide: bool, transposed: bool) -> None:
    generator = np.random.default_rng(size)
    samples = generator.standard_normal((2 * size, size)) * np.logspace(0, -3, size)
    R = cholesky_upper(samples.T @ samples)
    assert R is not None
    dtype = np.float64 if wide else np.float32
    R, B = R.astype(dtype), generator.standard_normal((size, columns)).astype(dtype)
    untouched = B.copy()
    X = solve_upper(R, B, transposed)
    assert X.dtype == dtype
    np.testing.assert_array_equal(B, untouched)
    matrix = R.T if transposed else R
    rounding = 50 * np.finfo(dtype).eps * (np.abs(matrix) @ np.abs(X)).max(initial=0.0) * size
    assert np.abs(matrix @ X - B).max(initial=0.0) <= rounding
