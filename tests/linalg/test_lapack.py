from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import threadpoolctl

from lowrank_onnx.linalg.lapack import (
    ALL_THREADS_WORK,
    SINGLE_THREAD_WORK,
    beside_runtime,
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
