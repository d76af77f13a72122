"""The rows that the walk gets of the original, and the values of the compressed model beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as h

from lowrank_onnx.attempt import Workshop
from lowrank_onnx.choose import Choice
from lowrank_onnx.forms import PAIR, Pivoted
from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.model_io import load_model
from lowrank_onnx.moments.feed_pass import add_value_outputs
from lowrank_onnx.moments.gather_rows import RowsError, gather_rows
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.refine.ahead import Wanted, plan_segments
from lowrank_onnx.refine.pieces import Bounds
from lowrank_onnx.refine.readings import find_readings
from lowrank_onnx.refine.replaced import replaced_weights
from lowrank_onnx.refine.steps import plan_steps
from lowrank_onnx.refine.target import find_target
from lowrank_onnx.types import Array
from tests.passes.models import make_model, run_ort, value, weight
from tests.refine.builders import WIDTH, inputs, layers, opened, workshop
from tests.refine.test_steps import replaced as replaced_of

FEEDS = inputs(3)


def value_of(model: onnx.ModelProto, name: str, feed: int) -> Array:
    wanted, _ = add_value_outputs(model, {name: "float32"})
    found: Array = run_ort(wanted, dict(FEEDS[feed]))[0]
    return found


def dense(model: onnx.ModelProto, products: dict[str, np.ndarray]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in products:
            tensor.CopyFrom(onnx.numpy_helper.from_array(products[tensor.name], tensor.name))
    return copy


@pytest.mark.parametrize("order", [(), tuple(reversed(range(WIDTH)))], ids=["pairs", "one in another order"])
@pytest.mark.parametrize("bounds", [Bounds(), Bounds(memory=0)], ids=["memory", "disk"])
def test_rows_are_of_the_original_and_values_of_the_compressed_model(
    tmp_path: Path, bounds: Bounds, order: tuple[int, ...]
) -> None:
    model = layers(4, residual=True)
    shop, choices = workshop(model, FEEDS, tmp_path, 5)
    if order:
        shop, choices = reordered(shop, choices, order)
    models, steps = opened(shop, choices, bounds)
    products = {one.weight.name: one.product(shop.spool) for one in replaced_weights(shop.groups, choices)}
    assert list(models.readings) == [1, 2, 3]
    for number in models.readings:
        step = steps.steps[number]
        site = step.members[0].site
        models.ahead.run_to(number)
        models.compressed.run_to(step.cut)
        for feed in range(len(FEEDS)):
            indices, kept = models.ahead.rows(number, feed, 48)
            np.testing.assert_array_equal(indices, np.arange(48))
            wanted = [value_of(model, name, feed) for name in (site.output, "x", "r1")]
            np.testing.assert_allclose(kept[0][0], wanted[0], rtol=1e-4, atol=1e-4)
            if number == 3:  # of the first sum, the term that is carried is the model's input
                np.testing.assert_allclose(kept[1][0], wanted[2], rtol=1e-4, atol=1e-4)
            assert len(kept) == (2 if number == 3 else 1)
            found = models.compressed.value(feed, step.value)
            expected = value_of(dense(model, products), step.value, feed)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        models.ahead.drop(number)
    models.close()
    assert not list(tmp_path.glob("activation.*"))


def reordered(shop: Workshop, choices: Sequence[Choice], order: tuple[int, ...]) -> tuple[Workshop, tuple[Choice, ...]]:
    """The first weight in the pivoted form, with its outputs in another order."""
    spool, group = shop.spool.branch(), shop.groups[0]
    pair = spool.get(group.weight, PAIR, 5)
    found = pivot_factors(pair.values("left")[0], pair.values("right")[0][:, list(order)], 0)
    assert found is not None
    parts = {"left": found.left[None].astype(np.float32), "after": found.after[None].astype(np.float32)}
    spool.put(group.weight, Pivoted(0, order), 5, parts, "svd")
    first = Choice(replace(choices[0].candidate, form="pivoted"))
    return replace(shop, spool=spool), (first, *choices[1:])


def conv(groups: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    weights = {"w": weight(6, 4 // groups, 3, 3), "b": weight(6, seed=1)}
    return [h.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, pads=[1] * 4)], weights


def gemm(**attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    weights = {"w": weight(4, 6), "b": weight(6, seed=1)}
    return [h.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)], weights


def from_the_left(bias: tuple[int, ...]) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    return [h.make_node("Gemm", ["w", "x", "b"], ["y"])], {"w": weight(6, 4), "b": weight(*bias, seed=1)}


def transposed() -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    weights = {"w": weight(4, 6, 3, 3), "b": weight(6, seed=1)}
    return [h.make_node("ConvTranspose", ["x", "w", "b"], ["y"])], weights


IMAGE, ROWS = (2, 4, 5, 5), (7, 4)


@pytest.mark.parametrize(
    ("made", "shape", "outputs"),
    [
        (conv(1), IMAGE, True),
        (conv(2), IMAGE, True),
        (gemm(), ROWS, True),
        (gemm(alpha=0.5, beta=3.0), ROWS, True),
        (gemm(transA=1), ROWS[::-1], True),
        (from_the_left((6, 1)), ROWS[::-1], True),
        (from_the_left((1, 7)), ROWS[::-1], False),  # a number for each row, not for each feature
        (transposed(), IMAGE, False),
        (gemm(alpha=0.0), ROWS, False),
    ],
)
def test_what_is_read_gives_what_the_weight_makes_of_the_inputs(
    made: tuple[list[onnx.NodeProto], dict[str, Array]], shape: tuple[int, ...], outputs: bool
) -> None:
    nodes, weights = made
    model = make_model(nodes, [value("x", shape)], [value("y", [None] * len(shape))], weights)
    flow = read_dataflow(model)
    (step,) = plan_steps(flow, replaced_of(model)).steps
    loaded = load_model(model)
    readings = find_readings(loaded, flow, step, frozenset(), 1)
    assert readings.outputs is outputs
    target = find_target(loaded, flow, step.members[0])
    X = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    (y,) = run_ort(model, {"x": X})
    values = {"x": X, "y": y}
    count = 50 if len(shape) > 2 else 7
    indices = np.arange(0, count, 3)
    rows = [reading.rows(values[reading.name], indices, np.float32) for reading in readings.products]
    expected = gather_rows(step.layout, X, indices, np.float32) @ target.W
    np.testing.assert_allclose(readings.multiplied(rows, [target]), expected, rtol=1e-4, atol=1e-4)


def test_outputs_that_were_rounded_are_not_read() -> None:
    half = weight(4, 6).astype(np.float16)
    node = h.make_node("MatMul", ["x", "w"], ["y"])
    model = make_model(
        [node], [value("x", ROWS, TensorProto.FLOAT16)], [value("y", [7, 6], TensorProto.FLOAT16)], {"w": half}
    )
    flow = read_dataflow(model)
    (step,) = plan_steps(flow, replaced_of(model)).steps
    assert not find_readings(load_model(model), flow, step, frozenset(), 1).outputs


def want(first: int, last: int, nbytes: int) -> Wanted:
    return Wanted(first, last, (), np.float32, 1, nbytes, "")


def test_as_many_steps_as_there_is_room_for_are_read_at_once() -> None:
    wanted = {0: want(0, 0, 4), 1: want(3, 5, 4), 2: want(4, 4, 4), 3: want(8, 8, 20), 4: want(9, 9, 4)}
    found = [(sorted(segment.steps), segment.cut) for segment in plan_segments(wanted, 8)]
    assert found == [([0, 1, 2], 6), ([3], 9), ([4], 10)]  # the third runs before what the second needs is there
    assert [sorted(segment.steps) for segment in plan_segments(wanted, 100)] == [[0, 1, 2, 3, 4]]
    assert plan_segments({}, 8) == ()


def test_other_rows_in_the_compressed_model_are_an_error(tmp_path: Path) -> None:
    shop, choices = workshop(layers(3), FEEDS, tmp_path, 5)
    models, _ = opened(shop, choices)
    models.ahead.run_to(1)
    with pytest.raises(RowsError, match="has 48 rows in the original and 47 in the compressed model"):
        models.ahead.rows(1, 0, 47)


@pytest.mark.parametrize("before", [True, False])
def test_rows_of_a_step_that_is_not_solved_do_not_wait(tmp_path: Path, before: bool) -> None:
    shop, choices = workshop(layers(4), FEEDS, tmp_path, 5)
    models, _ = opened(shop, choices)
    if before:
        models.ahead.drop(1)
    models.ahead.run_to(2)
    models.ahead.drop(1)
    with pytest.raises(KeyError):
        models.ahead.rows(1, 0, 48)
    assert len(models.ahead.rows(2, 0, 48)[1]) == 1
