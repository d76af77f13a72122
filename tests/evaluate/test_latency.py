from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.latency import measure_latency, median_interval, plan_looks
from lowrank_onnx.types import Feed
from tests.evaluate.fakes import FunctionSession, as_feeds


class Machine:
    """A clock that only runs of models move, and models that take a known time on it."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def clock(self) -> int:
        return self.now

    def model(self, name: str, nanoseconds: Callable[[Feed], float]) -> FunctionSession:
        def run(feed: Feed) -> dict[str, Any]:
            self.order.append(name)
            self.now += round(nanoseconds(feed))
            return {}

        return FunctionSession(run, outputs=())


FEEDS = as_feeds([np.full(1, 1.0, np.float32), np.full(1, 3.0, np.float32)])
MS = 1_000_000


def _noise(seed: int, spread: float) -> Iterator[float]:
    generator = np.random.default_rng(seed)
    while True:
        yield float(np.exp(spread * generator.standard_normal()))


def test_a_faster_candidate_is_found_with_its_ratio() -> None:
    machine = Machine()
    comparison = measure_latency(
        machine.model("A", lambda feed: 3 * MS * feed["x"][0]),
        machine.model("B", lambda feed: 2 * MS * feed["x"][0]),
        FEEDS,
        clock=machine.clock,
    )
    assert comparison.speedup == pytest.approx(1.5)
    assert comparison.speedup_low == pytest.approx(1.5)
    assert comparison.speedup_high == pytest.approx(1.5)
    assert comparison.faster
    assert comparison.pairs == 8  # the first look settles it
    assert comparison.original.runs == comparison.candidate.runs == 16
    assert comparison.original.median_ms == pytest.approx(6.0)  # feeds of 3 and 9 ms take turns
    assert comparison.original.iqr_ms == pytest.approx(6.0)
    assert comparison.candidate.median_ms == pytest.approx(4.0)


def test_a_slower_candidate_stops_early_too() -> None:
    machine = Machine()
    comparison = measure_latency(
        machine.model("A", lambda feed: 2 * MS), machine.model("B", lambda feed: 4 * MS), FEEDS, clock=machine.clock
    )
    assert comparison.speedup == 0.5
    assert not comparison.faster
    assert comparison.pairs == 8


def test_equal_models_are_measured_to_the_end_and_are_not_faster() -> None:
    machine, noise = Machine(), _noise(3, 0.1)
    comparison = measure_latency(
        machine.model("A", lambda feed: 2 * MS * next(noise)),
        machine.model("B", lambda feed: 2 * MS * next(noise)),
        FEEDS,
        clock=machine.clock,
        max_pairs=96,
    )
    assert comparison.pairs == 96
    assert comparison.speedup_low < 1.0 < comparison.speedup_high
    assert not comparison.faster


def test_a_small_gain_in_noise_takes_more_pairs() -> None:
    machine, noise = Machine(), _noise(5, 0.1)
    comparison = measure_latency(
        machine.model("A", lambda feed: 2.1 * MS * next(noise)),
        machine.model("B", lambda feed: 2.0 * MS * next(noise)),
        FEEDS,
        clock=machine.clock,
    )
    assert comparison.faster
    assert comparison.pairs > 8
    assert comparison.speedup_low < 1.05 < comparison.speedup_high


def test_looking_often_finds_equal_models_different_no_more_than_promised() -> None:
    wrong = 0
    for seed in range(200):
        machine, noise = Machine(), _noise(seed, 0.2)
        model = machine.model("A", lambda feed, noise=noise: 2 * MS * next(noise))  # type: ignore[misc]
        comparison = measure_latency(model, model, FEEDS, clock=machine.clock, confidence=0.9, max_pairs=96)
        wrong += not comparison.speedup_low <= 1.0 <= comparison.speedup_high
    assert wrong <= 20 + 3 * math.sqrt(200 * 0.1 * 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_a_drift_of_the_machine_makes_nothing_faster(seed: int) -> None:
    machine = Machine()
    runs = iter(range(10**9))
    model = machine.model("A", lambda feed: 2 * MS * (1 + 0.01 * next(runs)))
    comparison = measure_latency(model, model, FEEDS, clock=machine.clock, seed=seed, max_pairs=48)
    assert comparison.speedup == pytest.approx(1.0, abs=0.01)
    assert comparison.speedup_low < 1.0 < comparison.speedup_high


def test_a_third_of_the_runs_being_disturbed_hides_no_gain() -> None:
    machine, generator = Machine(), np.random.default_rng(0)

    def disturbed(milliseconds: float) -> Callable[[Feed], float]:
        return lambda feed: milliseconds * MS + (50 * MS if generator.random() < 1 / 3 else 0)

    comparison = measure_latency(
        machine.model("A", disturbed(2.2)), machine.model("B", disturbed(2.0)), FEEDS, clock=machine.clock
    )
    assert comparison.speedup == pytest.approx(1.1)
    assert comparison.faster


def test_models_are_warmed_up_and_then_interleaved() -> None:
    machine = Machine()
    measure_latency(
        machine.model("A", lambda feed: 2 * MS), machine.model("B", lambda feed: MS), FEEDS, clock=machine.clock
    )
    order = "".join(machine.order)
    assert order.startswith("AABB")
    pairs = [order[start : start + 4] for start in range(4, len(order), 4)]  # the second feed's shapes are the first's
    assert len(pairs) == 8
    assert all({first, second} == {"ABBA", "BAAB"} for first, second in zip(pairs[::2], pairs[1::2], strict=True))


def test_a_feed_of_other_shapes_is_warmed_up_too() -> None:
    machine = Machine()
    feeds = as_feeds([np.ones(size, np.float32) for size in (1, 2, 1, 2)])
    measure_latency(
        machine.model("A", lambda feed: 2 * MS), machine.model("B", lambda feed: MS), feeds, clock=machine.clock
    )
    order = "".join(machine.order)
    assert order.startswith("AABB" * 2)
    assert order[8:12] in ("ABBA", "BAAB")  # the others are of the same shapes


def test_the_order_within_pairs_follows_the_seed() -> None:
    def order(seed: int) -> str:
        machine = Machine()
        a, b = machine.model("A", lambda feed: 2 * MS), machine.model("B", lambda feed: MS)
        measure_latency(a, b, FEEDS, clock=machine.clock, seed=seed)
        return "".join(machine.order)

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_fast_models_are_repeated_until_the_clock_can_tell() -> None:
    machine = Machine()
    comparison = measure_latency(
        machine.model("A", lambda feed: 3_000), machine.model("B", lambda feed: 2_000), FEEDS, clock=machine.clock
    )
    assert comparison.original.runs == 16 * 500
    assert comparison.original.median_ms == pytest.approx(0.003)
    assert comparison.candidate.median_ms == pytest.approx(0.002)
    assert comparison.speedup == pytest.approx(1.5)


def test_a_clock_that_does_not_move_divides_by_nothing() -> None:
    machine = Machine()
    model = FunctionSession(lambda feed: {}, outputs=())
    comparison = measure_latency(model, model, FEEDS, clock=machine.clock, max_pairs=12)
    assert not comparison.faster
    assert comparison.speedup == 1.0


def test_slow_models_get_fewer_pairs_but_enough_to_decide() -> None:
    machine = Machine()
    comparison = measure_latency(
        machine.model("A", lambda feed: 9_000 * MS),
        machine.model("B", lambda feed: 6_000 * MS),
        FEEDS,
        clock=machine.clock,
        max_seconds=10,
    )
    assert comparison.pairs == 6
    assert comparison.faster


def test_warming_up_takes_in_few_feeds_when_they_are_slow() -> None:
    machine = Machine()
    seen: set[float] = set()

    def nanoseconds(feed: Feed) -> float:
        seen.add(float(feed["x"][0]))
        return 1_000 * MS

    model = machine.model("A", nanoseconds)
    many = as_feeds([np.full(1 + index, index, np.float32) for index in range(20)])
    measure_latency(model, model, many, clock=machine.clock, max_seconds=22)
    assert seen == {0.0, 1.0}
    seen.clear()
    measure_latency(model, model, many, clock=machine.clock, max_seconds=3_000)
    assert seen == set(map(float, range(8)))


def test_no_garbage_is_collected_meanwhile() -> None:
    machine = Machine()
    states: list[bool] = []

    def nanoseconds(feed: Feed) -> float:
        states.append(gc.isenabled())
        return 2 * MS

    model = machine.model("A", nanoseconds)
    measure_latency(model, model, FEEDS, clock=machine.clock, max_pairs=12)
    assert not any(states[6:])
    assert gc.isenabled()


def test_the_real_clock_runs() -> None:
    model = FunctionSession(lambda feed: {}, outputs=())
    comparison = measure_latency(model, model, FEEDS, max_pairs=12)
    assert comparison.pairs == 12
    assert comparison.original.median_ms > 0


def test_arguments_are_checked() -> None:
    model = FunctionSession(lambda feed: {}, outputs=())
    with pytest.raises(UsageError, match="there is no feed to time the models on"):
        measure_latency(model, model, Feeds("none", synthetic=False, samples=0, groups=()))
    with pytest.raises(UsageError, match="confidence 1: expected a share between 0 and 1"):
        measure_latency(model, model, FEEDS, confidence=1.0)
    with pytest.raises(UsageError, match="pairs 5 to 4, 60 s: expected 1 <= min_pairs <= max_pairs"):
        measure_latency(model, model, FEEDS, min_pairs=5, max_pairs=4)


def test_planned_looks() -> None:
    assert plan_looks(10_000, 12, 192, 0.95) == (12, 24, 48, 96, 192)
    assert plan_looks(100, 12, 192, 0.95) == (12, 24, 48, 100)
    assert plan_looks(0, 12, 192, 0.95) == (6,)
    assert plan_looks(13, 12, 192, 0.95) == (13,)
    assert plan_looks(10_000, 1, 16, 0.95) == (8, 16)


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(1, 50), st.integers(0, 300), st.sampled_from([0.8, 0.95, 0.99]))
def test_every_planned_look_can_decide(affordable: int, first: int, more: int, confidence: float) -> None:
    looks = plan_looks(affordable, first, first + more, confidence)
    assert list(looks) == sorted(set(looks))
    low, high = median_interval([2.0] * looks[0], (1 - confidence) / len(looks))
    assert (low, high) == (2.0, 2.0)


def test_the_interval_of_a_median_is_the_tabulated_one() -> None:
    # Ranks of the distribution-free 95 % interval, e.g. Conover, Practical Nonparametric Statistics, table A3.
    for count, rank in ((6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8)):
        assert median_interval(list(map(float, range(1, count + 1))), 0.05) == (rank, count + 1 - rank)
    assert median_interval([1.0] * 5, 0.05) == (0.0, math.inf)
    assert median_interval([], 0.05) == (0.0, math.inf)


def test_the_interval_covers_the_median_of_a_skewed_distribution() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = median_interval(list(np.exp(2 * generator.standard_normal(15))), 0.1)
        covered += low <= 1.0 <= high
    assert covered / 1000 == pytest.approx(0.965, abs=0.02)  # the exact coverage of ranks 4 and 12 of 15
