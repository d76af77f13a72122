from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.forms import PAIR
from lowrank_onnx.moments.feed_pass import add_value_outputs
from lowrank_onnx.passes.dataflow import Precedence, read_dataflow
from lowrank_onnx.refine.activations import Activations
from lowrank_onnx.refine.replaced import Replaced, replaced_weights
from lowrank_onnx.refine.twins import Bounds, Twins, TwinsError
from tests.passes.models import make_model, run_ort, value, weight
from tests.refine.builders import WIDTH, inputs, layers, workshop

FEEDS = inputs(3)


def dense(model: onnx.ModelProto, products: dict[str, np.ndarray]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in products:
            tensor.CopyFrom(onnx.numpy_helper.from_array(products[tensor.name], tensor.name))
    return copy


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(memory=0)], ids=["memory", "disk"])
def test_values_are_those_of_the_two_models(tmp_path: Path, bounds: Bounds) -> None:
    model = layers(4, residual=True)
    shop, choices = workshop(model, FEEDS, tmp_path, 5)
    flow = read_dataflow(shop.model.skeleton)
    order = Precedence(flow).order()
    replaced = replaced_weights(shop.groups, choices)
    twins = Twins(shop, flow, order, replaced, shop.spool, shop.original.calibration, bounds)
    products = {one.weight.name: one.product(shop.spool) for one in replaced}
    for cut, name in ((1, "m0"), (5, "a1"), (7, "r1"), (11, "m3")):
        twins.run_to(cut)
        assert twins.feeds == (0, 1, 2)
        assert twins.differ(name)
        for number, feed in enumerate(FEEDS):
            for side, whole in (("original", model), ("compressed", dense(model, products))):
                wanted, _ = add_value_outputs(whole, {name: "float32"})
                (expected,) = run_ort(wanted, dict(feed))
                found = twins.value(number, side, name)  # type: ignore[arg-type]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    twins.close()
    assert not list(tmp_path.glob("activation.*"))


def test_before_the_first_replaced_weight_there_is_one_model(tmp_path: Path) -> None:
    shop, _ = workshop(layers(4), FEEDS, tmp_path, 5)
    flow = read_dataflow(shop.model.skeleton)
    replaced = [Replaced(shop.groups[2], PAIR, 5)]
    twins = Twins(shop, flow, Precedence(flow).order(), replaced, shop.spool, shop.original.calibration, Bounds())
    twins.run_to(6)
    assert not twins.differ("r1")
    assert twins.value(0, "compressed", "r1") is twins.value(0, "original", "r1")
    twins.run_to(7)
    assert twins.differ("m2")


def test_a_sequence_cannot_wait(tmp_path: Path) -> None:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("SplitToSequence", ["a"], ["s"], axis=1),
        h.make_node("ConcatFromSequence", ["s"], ["b"], axis=1),
        h.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    weights = {"w": weight(WIDTH, WIDTH), "w2": weight(WIDTH, WIDTH, seed=1)}
    model = make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)
    shop, _ = workshop(model, FEEDS, tmp_path, 5)
    flow = read_dataflow(shop.model.skeleton)
    order = Precedence(flow).order()
    twins = Twins(
        shop, flow, order, [Replaced(shop.groups[0], PAIR, 5)], shop.spool, shop.original.calibration, Bounds()
    )
    with pytest.raises(TwinsError, match="value 's' is no tensor, and can't be kept between the layers"):
        twins.run_to(2)


def test_activations_keep_to_their_bounds(tmp_path: Path) -> None:
    import ml_dtypes

    kept = Activations(tmp_path, max_memory=16, max_disk=8)
    first, second = np.arange(4, dtype=np.float32), np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2)
    assert kept.put(0, "original", "a", first)
    assert kept.put(0, "compressed", "b", second)  # 8 bytes, on disk
    assert not kept.put(1, "original", "c", second)
    assert kept.get(0, "original", "a") is first
    found = kept.get(0, "compressed", "b")
    assert found.dtype == second.dtype
    np.testing.assert_array_equal(found, second)
    kept.drop(0, ["b"])
    with pytest.raises(KeyError):
        kept.get(0, "original", "a")
    assert kept.put(1, "original", "c", first)
    kept.drop(0)
    assert not list(tmp_path.iterdir())
    assert kept.put(1, "compressed", "d", second)
