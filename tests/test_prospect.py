"""What inspect predicts: the noise that spectra are held against, the plans, and the honest word."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx.config import Config, KeepMacs
from lowrank_onnx.noise_spectrum import noise_tail
from lowrank_onnx.site_override import SiteOverride
from lowrank_onnx.types import Array, MatrixShape
from tests.tiny_model import decaying


def layers(*weights: Array, ballast: int = 0) -> onnx.ModelProto:
    """MatMuls in a row, and beside them a table of so many parameters that nothing can factorize."""
    nodes = []
    for i in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"y{i}"], name=f"fc{i}"))
        # With nothing in between they would become one.
        nodes.append(helper.make_node("LeakyRelu", [f"y{i}"], [f"h{i + 1}"], alpha=0.5))
    stored = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)]
    outputs = [helper.make_tensor_value_info(f"h{len(weights)}", TensorProto.FLOAT, None)]
    if ballast:
        stored.append(numpy_helper.from_array(np.ones(ballast, np.float32), "table"))
        nodes.append(helper.make_node("ReduceSum", ["table"], ["s"], keepdims=0))
        outputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("h0", TensorProto.FLOAT, [4, weights[0].shape[0]])], outputs, stored
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def noise(rows: int, columns: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("shape", [(400, 400), (300, 900), (900, 300)])
def test_the_law_is_that_of_random_matrices(shape: tuple[int, int]) -> None:
    values = np.linalg.svd(noise(*shape, seed=1), compute_uv=False) ** 2
    for rank in (0, 30, 100, 200, 299):
        expected = float(np.sum(values[rank:]) / np.sum(values))
        assert noise_tail(MatrixShape(1, *shape), rank) == pytest.approx(expected, abs=0.01)
    assert noise_tail(MatrixShape(1, *shape), min(shape)) == 0.0
    assert noise_tail(MatrixShape(1, *shape), 10_000) == 0.0


def test_plans_are_those_of_a_plain_compression() -> None:
    model = layers(decaying(128, 128, 0.9), decaying(128, 128, 0.97))
    result = lowrank_onnx.inspect(model)
    assert [plan.share for plan in result.plans] == [0.8, 0.6, 0.4]
    assert [(plan.flag, plan.macs) for plan in result.plans] == [
        ("--keep-macs", 4 * p.parameters) for p in result.plans
    ]
    for index, plan in enumerate(result.plans):
        config = Config(budget=KeepMacs(plan.share), objective="size", forms=("pair",), validate=False, effort="fast")
        done = lowrank_onnx.compress(model, config)
        assert done.after is not None
        assert plan.parameters == done.after.site_parameters
        assert [site.budget_ranks[index] for site in result.sites] == [(plan.share, s.rank) for s in done.sites]
        errors = [site.relative_error for site in done.sites if site.relative_error is not None]
        assert plan.error == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-3, abs=1e-6)
        assert plan.rewritten == len(errors)
    assert result.message.startswith("something to gain: at --keep-macs 0.4 the weights lose ")


def test_a_given_rank_is_in_every_plan() -> None:
    model = layers(decaying(128, 128, 0.9), decaying(128, 128, 0.97))
    result = lowrank_onnx.inspect(model, Config(overrides=(SiteOverride(match="fc1", rank=17),)))
    assert {rank for _, rank in result.sites[1].budget_ranks} == {17}


def test_noise_has_nothing_to_gain() -> None:
    result = lowrank_onnx.inspect(layers(noise(128, 128, 1), noise(128, 128, 2)))
    assert result.message.startswith("probably nothing to gain: the spectra fall hardly faster than those of noise")
    assert all(0.9 < plan.error / plan.noise_error < 1.1 for plan in result.plans)


def test_a_small_part_of_a_model_has_little_to_gain() -> None:
    message = lowrank_onnx.inspect(layers(decaying(64, 64, 0.8), ballast=500_000)).message
    assert message == "little to gain; and the eligible weights are only 0.8 % of the model's parameters"


def test_weights_that_are_too_small() -> None:
    message = lowrank_onnx.inspect(layers(noise(2, 2, 1))).message
    assert message == "nothing to gain: every weight is too small for factors to be smaller"


def test_a_model_without_weights() -> None:
    result = lowrank_onnx.inspect(layers(decaying(64, 64, 0.8)), Config(exclude=("*",)))
    assert result.message == (
        "nothing to gain: the model has no weight that can be factorized: nodes that could have one were skipped, "
        "each for a reason"
    )
    assert result.plans == ()


def test_shares_that_are_out_of_reach() -> None:
    result = lowrank_onnx.inspect(layers(decaying(64, 64, 0.9)), Config(overrides=(SiteOverride(match="*", rank=31),)))
    assert result.plans == ()
    assert result.message == "little to gain: no share of 0.8 or less can be reached"
