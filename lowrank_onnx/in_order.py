"""Work for several threads whose results are taken in the order in which it was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


def in_order(executor: Executor, jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The results of jobs, in their order.

    Parameters
    ----------
    jobs : taken by the thread that takes the results.
    ahead : how many more are begun before one's result is waited for.

    Raises
    ------
    What a job raises, when its turn comes.
    """
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        waiting.append(executor.submit(job))
        del job
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
