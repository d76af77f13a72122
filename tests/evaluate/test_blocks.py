from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.latency import measure_latency
from lowrank_onnx.evaluate.turns import Sessions
from lowrank_onnx.types import Feed, LatencyComparison
from tests.evaluate.fakes import FunctionSession, as_feeds

MS = 1_000_000
FEEDS = as_feeds([np.full(1, 1.0, np.float32), np.full(1, 3.0, np.float32)])


class Machine:
    """A clock that only models and their loading move on, and a log of who was opened and run."""

    def __init__(self, load_ns: int = 1000 * MS) -> None:
        self.now = 0
        self.load_ns = load_ns
        self.log: list[str] = []
        self.sessions = Sessions(one_at_a_time=True)

    def clock(self) -> int:
        return self.now

    def model(self, name: str, nanoseconds: Callable[[Feed], float]) -> Any:
        def run(feed: Feed) -> dict[str, Any]:
            self.log.append(name)
            self.now += round(nanoseconds(feed))
            return {}

        def start() -> Any:
            self.log.append(f"open {name}")
            self.now += self.load_ns
            session = FunctionSession(run, outputs=())
            session.overridable, session.nodes, session.providers_used = (), None, ()  # type: ignore[attr-defined]
            return session

        return self.sessions.open(start)

    def measure(
        self,
        original: Callable[[Feed], float],
        candidate: Callable[[Feed], float],
        feeds: Feeds = FEEDS,
        **options: Any,
    ) -> LatencyComparison:
        models = self.model("A", original), self.model("B", candidate)
        return measure_latency(*models, feeds, clock=self.clock, **options)


def noise(seed: int, spread: float) -> Iterator[float]:
    generator = np.random.default_rng(seed)
    while True:
        yield float(np.exp(spread * generator.standard_normal()))


def test_loading_is_not_timed() -> None:
    machine = Machine()
    comparison = machine.measure(lambda feed: 3 * MS * feed["x"][0], lambda feed: 2 * MS * feed["x"][0], min_pairs=12)
    assert comparison.speedup == comparison.speedup_low == comparison.speedup_high == pytest.approx(1.5)
    assert comparison.faster
    assert comparison.original.median_ms == pytest.approx(6.0)
    assert comparison.candidate.median_ms == pytest.approx(4.0)
    assert comparison.pairs == 12  # a pair takes about a second, so a minute has time for more looks than the first


def test_each_pair_costs_one_loading() -> None:
    machine = Machine()
    comparison = machine.measure(lambda feed: 3 * MS, lambda feed: 2 * MS)
    opened = [entry for entry in machine.log if entry.startswith("open")]
    # Both when they are opened, the original to be timed once, the candidate to warm up, then one with each pair.
    assert len(opened) == 4 + comparison.pairs
    assert all(first != second for first, second in itertools.pairwise(opened))


def test_however_slow_they_are_the_fewest_blocks_that_can_decide_are_measured() -> None:
    machine = Machine(load_ns=100_000 * MS)
    comparison = machine.measure(lambda feed: 90_000 * MS, lambda feed: 30_000 * MS, max_seconds=60.0)
    assert comparison.pairs == 6
    assert comparison.faster
    assert comparison.speedup == pytest.approx(3.0)
    assert machine.log.count("A") == 2 + 3 * 7  # of the two feeds there is time for one
    assert comparison.original.runs == 6


def test_equal_models_are_not_faster_under_noise() -> None:
    source = noise(4, 0.1)
    for _ in range(5):
        comparison = Machine().measure(
            lambda feed: 2 * MS * next(source), lambda feed: 2 * MS * next(source), max_pairs=24
        )
        assert comparison.pairs == 24
        assert comparison.speedup_low < 1.0 < comparison.speedup_high


def test_load_that_grows_steadily_favours_neither() -> None:
    machine = Machine()

    def slower(feed: Feed) -> float:
        return 2 * MS * (1.0 + machine.now / 60e9)

    comparison = machine.measure(slower, slower, max_pairs=24)
    assert comparison.speedup_low < 1.0 < comparison.speedup_high
    assert comparison.speedup == pytest.approx(1.0, abs=0.02)


def test_models_below_a_millisecond_are_repeated() -> None:
    comparison = Machine().measure(lambda feed: 0.01 * MS, lambda feed: 0.005 * MS)
    assert comparison.original.runs == comparison.pairs * 2 * 100
    assert comparison.speedup == pytest.approx(2.0)


def test_nothing_to_run_on() -> None:
    empty = Feeds("none", synthetic=False, samples=0, groups=())
    with pytest.raises(UsageError, match="there is no feed to time the models on"):
        Machine().measure(lambda feed: MS, lambda feed: MS, empty)
