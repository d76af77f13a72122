from __future__ import annotations

import threadpoolctl

from lowrank_onnx.linalg.lapack import ALL_THREADS_WORK, SINGLE_THREAD_WORK, beside_runtime, threads_for_work


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
