from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from lowrank_onnx.candidates import DENSE, PlannedWeight
from lowrank_onnx.forms import PAIR, PIVOTED, Form
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.plan import (
    FEWEST_TIMED_ROWS,
    MOST_NOISE,
    SITE_SECONDS,
    WeightLatency,
    measure_weights,
    median_run_ms,
    with_latency,
)
from lowrank_onnx.latency.table import Unmeasured
from lowrank_onnx.observe import Observation
from lowrank_onnx.passes import offer_forms
from lowrank_onnx.progress import SILENT
from lowrank_onnx.types import MatrixShape, Site
from lowrank_onnx.weights import SharedWeight, group_by_weight
from tests.latency.workbench import Workbench, found_in, layers, milliseconds
from tests.passes.models import make_model, value, weight

CURVE = LatencyCurve(dense_ms=4.0, ranks=(8, 16), rank_ms=(1.0, 3.0), noise=0.1)


class Table:
    """Gives the same curve for each site, and takes its time for one it hasn't seen."""

    def __init__(self, seconds_each: float = 0.0, refused: str = "") -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.forms: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.seconds: list[float] = []
        self._each, self._refused = seconds_each, refused

    def open(self, seconds: float) -> Table:
        self.seconds.append(seconds)
        return self

    def clock(self) -> float:
        return self.now

    def curve(
        self,
        skeleton: onnx.ModelProto,
        site: Site,
        form: Form,
        input_shape: tuple[int, ...],
        partners: Sequence[Site] = (),
    ) -> LatencyCurve | Unmeasured:
        self.asked.append(site.name)
        self.forms.append(form.name)
        self.shapes.append(input_shape)
        self.now += self._each
        return Unmeasured("no reason") if site.name == self._refused else CURVE


def group_plain(sites: tuple[Site, ...]) -> tuple[SharedWeight, ...]:
    """The weights of sites that are written in their plain form only."""
    return group_by_weight(replace(site, forms=site.forms[:1]) for site in sites)


def observed(sites: tuple[Site, ...], positions: int = 5) -> dict[str, Observation]:
    return {site.name: Observation(positions, (positions, site.shape.in_features), (1, 1)) for site in sites}


def test_the_sites_of_a_shared_weight_add_up_and_so_does_their_noise() -> None:
    other = LatencyCurve(dense_ms=1.0, ranks=(8,), rank_ms=(0.5,), noise=0.6)
    both = WeightLatency({"pair": (CURVE, other)})
    assert both(DENSE, None) == 5.0
    assert both("pair", 8) == 1.5
    assert both("pair", 16) == 3.0 + 1.0
    assert both.noise == pytest.approx((0.1 * 4.0 + 0.6 * 1.0) / 5.0)
    assert WeightLatency({"pair": (CURVE,)}).noise == pytest.approx(0.1)


def test_a_shared_weight_is_the_sum_over_its_sites() -> None:
    skeleton, sites = found_in(layers((64, 64), (64, 32)))
    shared = (sites[0], replace(sites[0], name="again"), sites[1])
    groups = group_plain(shared)
    table = Table()
    found = measure_weights(skeleton, groups, observed(shared), table.open, SILENT)
    assert found == {
        groups[0].weight: WeightLatency({"pair": (CURVE, CURVE)}),
        groups[1].weight: WeightLatency({"pair": (CURVE,)}),
    }


def test_a_weight_with_an_unseen_or_unmeasured_site_has_the_reason() -> None:
    skeleton, sites = found_in(layers((64, 64), (64, 32), (64, 48)))
    seen = observed(sites[:2])
    groups = group_plain(sites)
    found = measure_weights(skeleton, groups, seen, Table(refused="layer1").open, SILENT)
    assert found[groups[0].weight] == WeightLatency({"pair": (CURVE,)})
    assert found[groups[1].weight] == Unmeasured("no reason")
    assert found[groups[2].weight] == Unmeasured("no run of the model reaches it where its shape can be seen")


def test_time_is_bounded_and_goes_to_the_weights_with_most_work_first() -> None:
    skeleton, sites = found_in(layers((64, 16), (64, 64), (64, 32)))
    groups = group_plain(sites)
    table = Table(seconds_each=0.7)
    found = measure_weights(skeleton, groups, observed(sites), table.open, SILENT, total_seconds=1.0, clock=table.clock)
    assert table.asked == ["layer1", "layer2"]
    assert found[groups[0].weight] == Unmeasured("the 1 s for timing went to weights with more work")
    assert table.seconds == [0.2]


def test_every_weight_has_a_form_timed_before_any_has_two() -> None:
    skeleton, sites = found_in(layers((64, 96), (64, 64)))
    groups = group_by_weight(sites)
    table = Table(seconds_each=0.7)
    found = measure_weights(skeleton, groups, observed(sites), table.open, SILENT, total_seconds=1.0, clock=table.clock)
    assert list(zip(table.asked, table.forms, strict=True)) == [("layer0", "pair"), ("layer1", "pair")]
    for group in groups:
        latency = found[group.weight]
        assert isinstance(latency, WeightLatency)
        assert latency.untimed == {form.name for form in group.forms[1:]}


def convolutions(operator: str, kernel: tuple[int, ...]) -> tuple[onnx.ModelProto, tuple[Site, ...]]:
    node = helper.make_node(operator, ["in", "w"], ["y"], name="conv")
    return found_in(make_model([node], [value("in")], [value("y")], {"w": weight(*kernel)}))


@pytest.mark.parametrize(
    ("operator", "kernel", "shape", "timed", "parts"),
    [
        ("Conv", (64, 64, 3, 3), (1, 64, 32, 32), (1, 64, 32, 32), 1.0),
        ("Conv", (64, 64, 3, 3), (1, 64, 512, 512), (1, 64, 29, 512), 512 / 29),
        ("ConvTranspose", (64, 64, 3, 3), (1, 64, 512, 512), (1, 64, 29, 512), 512 / 29),
        ("Conv", (512, 512, 3, 3), (8, 512, 128, 128), (8, 512, FEWEST_TIMED_ROWS, 128), 128 / FEWEST_TIMED_ROWS),
        ("Conv", (512, 512, 3, 3), (64, 512, 12, 12), (64, 512, 12, 12), 1.0),
        ("Conv", (64, 64, 3), (1, 64, 10**6), (1, 64, 43691), 10**6 / 43691),
    ],
)
def test_a_convolution_with_much_work_is_timed_on_some_rows(
    operator: str, kernel: tuple[int, ...], shape: tuple[int, ...], timed: tuple[int, ...], parts: float
) -> None:
    skeleton, sites = convolutions(operator, kernel)
    positions = shape[0] * int(np.prod(shape[2:]))
    table = Table()
    found = measure_weights(
        skeleton, group_plain(sites), {"conv": Observation(positions, shape, shape)}, table.open, SILENT
    )
    assert table.shapes == [timed]
    (latency,) = found.values()
    assert isinstance(latency, WeightLatency)
    assert latency(DENSE, None) == pytest.approx(parts * CURVE.dense_ms)
    assert latency(sites[0].forms[0].name, 16) == pytest.approx(parts * 3.0)
    assert latency.noise == pytest.approx(CURVE.noise)


def test_products_are_timed_on_all_rows() -> None:
    skeleton, sites = found_in(layers((4096, 4096)))
    table = Table()
    measure_weights(skeleton, group_plain(sites), observed(sites, 100_000), table.open, SILENT)
    assert table.shapes == [(100_000, 4096)]


def test_equal_sites_cost_no_more_time() -> None:
    skeleton, sites = found_in(layers((64, 64), (64, 64), (64, 64)))
    table = Table(seconds_each=2.0)
    found = measure_weights(
        skeleton, group_plain(sites), observed(sites), table.open, SILENT, total_seconds=1.0, clock=table.clock
    )
    assert all(isinstance(latency, WeightLatency) for latency in found.values())


def test_many_sites_get_less_time_each_but_never_none() -> None:
    skeleton, sites = found_in(layers(*((64, 8 + i) for i in range(40))))
    table = Table()
    measure_weights(skeleton, group_plain(sites), observed(sites), table.open, SILENT, total_seconds=0.5)
    measure_weights(skeleton, group_plain(sites), observed(sites), table.open, SILENT, total_seconds=10.0)
    measure_weights(skeleton, group_plain(sites[:3]), observed(sites), table.open, SILENT, total_seconds=10.0)
    assert table.seconds == [SITE_SECONDS[-1], 0.2, SITE_SECONDS[0]]


def test_the_real_table_measures_what_a_session_takes() -> None:
    bench = Workbench()
    skeleton, sites = found_in(layers((64, 64)))
    groups = group_plain(sites)
    found = measure_weights(
        skeleton, groups, observed(sites), lambda seconds: bench.table(seconds_per_site=seconds), SILENT
    )
    latency = found[groups[0].weight]
    assert isinstance(latency, WeightLatency)
    assert latency(DENSE, None) == pytest.approx(milliseconds(64 * 64))
    assert latency("pair", 8) == pytest.approx(milliseconds(8 * 128), rel=0.05)


def test_weights_get_their_latency_or_the_reason() -> None:
    weights = [PlannedWeight(name, MatrixShape(1, 64, 64), (PAIR,), None) for name in "ab"]
    first, second = with_latency(weights, [WeightLatency({"pair": (CURVE,)}), Unmeasured("no reason")])
    assert first.latency is not None
    assert (first.latency(DENSE, None), first.unmeasured) == (4.0, "")
    assert first.noise == pytest.approx(0.1)
    assert (second.latency, second.unmeasured) == (None, "no reason")


def test_a_form_that_there_was_no_time_for_takes_what_the_plain_one_takes_for_as_much_work() -> None:
    shape = MatrixShape(1, 64, 64)
    weight = PlannedWeight("w", shape, (PAIR, PIVOTED), 10)
    (known,) = with_latency([weight], [WeightLatency({"pair": (CURVE,)}, frozenset(("pivoted",)))])
    assert known.forms == (PAIR, PIVOTED)
    assert known.latency is not None
    assert known.latency("pair", 16) == 3.0
    # 16 (64 + 64 - 16) multiply-accumulates at a position are those of a pair of rank 14.
    assert known.latency("pivoted", 16) == CURVE.at(14)
    assert known.latency(DENSE, None) == 4.0


@pytest.mark.parametrize(
    ("latency", "positions", "forms"),
    [
        (WeightLatency({"pair": (CURVE,)}), 10, (PAIR,)),  # it can't be timed at all
        (WeightLatency({"pivoted": (CURVE,)}, frozenset(("pair",))), 10, (PIVOTED,)),
        (WeightLatency({"pair": (CURVE,)}, frozenset(("pivoted",))), None, (PAIR,)),
    ],
)
def test_other_forms_that_were_not_timed_are_not_planned_with(
    latency: WeightLatency, positions: int | None, forms: tuple[Form, ...]
) -> None:
    weight = PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR, PIVOTED), positions)
    (known,) = with_latency([weight], [latency])
    assert known.forms == forms


@pytest.mark.parametrize(("noise", "asked"), [(2.5, MOST_NOISE), (0.03, 0.03)])
def test_no_more_gain_is_asked_for_than_a_busy_machine_can_show(noise: float, asked: float) -> None:
    latency = WeightLatency({"pair": (replace(CURVE, noise=noise),)})
    (weight,) = with_latency([PlannedWeight("w", MatrixShape(1, 64, 64), (PAIR,), None)], [latency])
    assert weight.noise == pytest.approx(asked)


def test_the_original_is_timed_by_the_median_of_several_runs() -> None:
    times = iter([9e9, 9e9, 3e6, 1e6, 2e6, 5e8, 1e9, 4e6, 1e6])

    bench = Workbench(lambda weights, now: next(times))
    model = bench.open(found_in(layers((64, 64)))[0].SerializeToString())
    assert median_run_ms(model, {"x": np.zeros(1)}, clock=bench.clock) == 3.0


def test_a_bundle_is_timed_as_one_and_counts_in_proportion() -> None:
    skeleton, sites = found_in(layers((64, 96), (64, 32)))
    sites, _ = offer_forms(sites, ("pair", "shared"))
    groups = group_by_weight(sites)
    bench = Workbench()
    found = measure_weights(
        skeleton, groups, observed(sites), lambda seconds: bench.table(seconds_per_site=seconds), SILENT
    )
    first, second = (found[group.weight] for group in groups)
    assert isinstance(first, WeightLatency)
    assert isinstance(second, WeightLatency)
    assert first.curves["shared"] == second.curves["shared"]
    share = milliseconds(64 * 128) / (milliseconds(64 * 96) + milliseconds(64 * 32))
    together = first("shared", 16) + second("shared", 16)
    assert together * share == pytest.approx(milliseconds(16 * (64 + 128)), rel=0.05)


def test_a_bundle_of_which_part_is_not_seen_has_no_time() -> None:
    skeleton, sites = found_in(layers((64, 96), (64, 96)))
    sites, _ = offer_forms(sites, ("pair", "shared"))
    groups = group_by_weight(sites)
    found = measure_weights(skeleton, groups, observed(sites[:1]), Table().open, SILENT)
    latency = found[groups[0].weight]
    assert isinstance(latency, WeightLatency)
    assert list(latency.curves) == ["pair"]
