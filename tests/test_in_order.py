from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_onnx.in_order import in_order


@given(count=st.integers(0, 12), workers=st.integers(1, 4), ahead=st.integers(0, 5))
def test_results_come_in_the_order_of_the_jobs(count: int, workers: int, ahead: int) -> None:
    with ThreadPoolExecutor(workers) as executor:
        jobs = (partial(pow, number, 2) for number in range(count))
        assert list(in_order(executor, jobs, ahead)) == [number**2 for number in range(count)]


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_jobs_are_taken_than_may_be_ahead(ahead: int) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(6):
            taken.append(number)
            yield partial(int, number)

    with ThreadPoolExecutor(2) as executor:
        results = in_order(executor, jobs(), ahead)
        for number in range(6):
            assert next(results) == number
            assert len(taken) == min(number + 1 + ahead, 6)


def test_jobs_run_side_by_side() -> None:
    together = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as executor:
        assert sorted(in_order(executor, (together.wait for _ in range(4)), 1)) == [0, 0, 1, 1]


def test_an_error_comes_when_its_turn_does() -> None:
    def fail() -> int:
        raise ValueError("no")

    with ThreadPoolExecutor(2) as executor:
        results = in_order(executor, [lambda: 1, fail, lambda: 3], 2)
        assert next(results) == 1
        with pytest.raises(ValueError, match="no"):
            next(results)
