from __future__ import annotations

import numpy as np
import pytest

from tests.latency.workbench import Workbench, layers, measured


def test_every_pass_measures_each_session_once_in_changing_order() -> None:
    bench = Workbench(lambda weights, now: 1e6 + weights)  # 1 ms: one run is one measurement
    measured(bench.table(), layers((64, 96)))
    timed = bench.runs[3 * 5 :]  # three runs of each to warm up
    passes = [tuple(timed[start : start + 5]) for start in range(0, len(timed), 5)]
    assert len(passes) == 24
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 5 for one in passes)
    assert passes[1::2] == [one[::-1] for one in passes[::2]]
    assert {one[0] for one in passes} == set(passes[0])
    assert len(set(passes[::2])) > 6


def test_a_measurement_lasts_half_a_millisecond() -> None:
    bench = Workbench(lambda weights, now: 120_000 if weights == 64 * 96 else 30_000)
    measured(bench.table(), layers((64, 96)))
    timed = bench.runs[3 * 5 :]
    assert timed.count(64 * 96) == 24 * 5  # 5 x 0.12 ms
    assert timed.count(8 * 160) == 24 * 17  # 17 x 0.03 ms


def test_time_bounds_the_passes() -> None:
    generator = np.random.default_rng(5)
    bench = Workbench(lambda weights, now: 10e6 * generator.uniform(1.0, 3.0))  # never quiet
    curve = measured(bench.table(seconds_per_site=1.5), layers((64, 96)))
    assert curve.ranks == (8, 16, 24, 32)
    assert 1.5e9 <= bench.now <= 1.5e9 + 5 * 30e6
    assert curve.noise > 0.03


def test_a_slow_node_is_measured_at_fewer_ranks() -> None:
    bench = Workbench(lambda weights, now: 60e6)
    curve = measured(bench.table(seconds_per_site=2.2), layers((64, 96)))
    assert curve.ranks == (8, 24, 32)
    assert bench.now <= 2.2e9 + 4 * 60e6  # the pass that has begun is ended


def test_a_very_slow_node_is_measured_at_two_ranks_in_six_passes() -> None:
    bench = Workbench(lambda weights, now: 5e9)
    curve = measured(bench.table(seconds_per_site=0.5), layers((64, 96)))
    assert curve.ranks == (8, 32)
    assert len(bench.runs) == 3 * (3 + 6)


def test_it_goes_on_while_it_is_noisy_and_no_longer_than_it_may() -> None:
    generator = np.random.default_rng(5)
    bench = Workbench(lambda weights, now: (1e6 + weights) * generator.uniform(1.0, 2.0))
    measured(bench.table(seconds_per_site=1e3), layers((64, 96)))
    quiet = Workbench(lambda weights, now: 1e6 + weights)
    measured(quiet.table(seconds_per_site=1e3), layers((64, 96)))
    assert len(quiet.runs) == 5 * (3 + 24)
    assert 5 * (3 + 24) < len(bench.runs) <= 5 * (3 + 192)


def test_what_only_adds_time_now_and_then_falls_out() -> None:
    generator = np.random.default_rng(7)

    def disturbed(weights: int, now: int) -> float:
        return (1e6 + 100 * weights) * (9.0 if generator.random() < 0.2 else 1.0)

    curve = measured(Workbench(disturbed).table(), layers((64, 96)))
    assert curve.dense_ms == pytest.approx(1.6144)
    assert curve.rank_ms == pytest.approx([1.0 + rank * 160 * 1e-4 for rank in curve.ranks])
    assert curve.noise == 0.03


@pytest.mark.parametrize("first", [4.0, 1.0])
def test_load_that_comes_or_goes_falls_out(first: float) -> None:
    def loaded(weights: int, now: int) -> float:
        return (1e6 + 100 * weights) * (first if now < 60_000_000 else 5.0 - first)

    calm = measured(Workbench(lambda weights, now: 1e6 + 100 * weights).table(), layers((64, 96)))
    curve = measured(Workbench(loaded).table(), layers((64, 96)))
    ratios = [time / curve.dense_ms for time in curve.rank_ms]
    assert ratios == pytest.approx([time / calm.dense_ms for time in calm.rank_ms], rel=1e-9)
    assert curve.noise == 0.03


def test_noise_is_measured_and_keeps_from_calling_anything_faster() -> None:
    generator = np.random.default_rng(3)
    noisy = Workbench(lambda weights, now: (1e6 + 20 * weights) * generator.uniform(0.5, 1.5))
    curve = measured(noisy.table(), layers((64, 96)))
    calm = measured(Workbench(lambda weights, now: 1e6 + 20 * weights).table(), layers((64, 96)))
    assert calm.noise == 0.03
    assert calm.faster(8)
    assert 0.04 < curve.noise < 1.0
    assert not curve.faster(32)
