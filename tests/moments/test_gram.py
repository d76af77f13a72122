from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import pytest
import threadpoolctl

from lowrank_onnx.moments.gram import STRIPE, add_upper_gram, gram_threads
from tests.moments.builders import whole_numbers


@pytest.mark.parametrize("size", [1, STRIPE - 1, STRIPE, STRIPE + 1, 3 * STRIPE - 5])
def test_the_upper_triangle_is_added(size: int) -> None:
    rows = whole_numbers(20, size)
    wide = rows.astype(np.float64)
    total = np.ones((size, size))
    add_upper_gram(total, rows)
    np.testing.assert_array_equal(np.triu(total), np.triu(wide.T @ wide + 1.0))


def test_threads_change_no_bit() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 2 * STRIPE + 7)).astype(np.float32)

    def upper(executor: Executor | None) -> bytes:
        total = np.zeros((rows.shape[1], rows.shape[1]))
        add_upper_gram(total, rows, executor)
        return np.triu(total).tobytes()

    with gram_threads() as executor:
        assert upper(executor) == upper(None) == upper(executor)


def test_an_error_in_a_thread_arrives() -> None:
    total = np.zeros((2 * STRIPE, 2 * STRIPE))
    total.flags.writeable = False
    with gram_threads() as executor, pytest.raises(ValueError, match="read-only"):
        add_upper_gram(total, whole_numbers(3, 2 * STRIPE), executor)


def test_blas_has_one_thread_inside_and_as_many_as_before_outside() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    assert before
    with gram_threads():
        assert set(threads()) == {1}
    assert threads() == before
