from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.passes.residual import Gain, Residual, find_residual
from tests.passes.models import constant, make_model, sites_of, value, weight

WEIGHTS = {"w": weight(4, 4), "b": weight(4), "g": weight(4)}


def found(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("out",)) -> Residual | None:
    model = make_model(
        [h.make_node("Relu", ["x"], ["r"]), *nodes],
        [value("x", ["n", 4])],
        [value(name, ["n", 4]) for name in outputs],
        WEIGHTS,
    )
    (site,) = sites_of(model)
    return find_residual(read_dataflow(model), site)


SITE = h.make_node("MatMul", ["x", "w"], ["y"])


def test_a_plain_sum() -> None:
    assert found(SITE, h.make_node("Add", ["r", "y"], ["out"])) == Residual(2, "r", 1.0, ())


def test_biases_scales_and_nodes_that_change_nothing_stand_between() -> None:
    chain = [
        h.make_node("Add", ["y", "b"], ["y1"]),
        h.make_node("Mul", ["g", "y1"], ["y2"]),
        h.make_node("Identity", ["y2"], ["y3"]),
        h.make_node("Dropout", ["y3"], ["y4"]),
        h.make_node("Div", ["y4", "g"], ["y5"]),
        h.make_node("Sub", ["y5", "b"], ["y6"]),
        h.make_node("Add", ["y6", "r"], ["out"]),
    ]
    gains = (Gain("g", divides=False), Gain("g", divides=True))
    assert found(SITE, *chain) == Residual(8, "r", 1.0, gains)


def test_a_gain_may_be_a_constant_node() -> None:
    chain = [
        constant("scale", np.array(2.0, np.float32)),
        h.make_node("Mul", ["y", "scale"], ["y1"]),
        h.make_node("Add", ["y1", "r"], ["out"]),
    ]
    assert found(SITE, *chain) == Residual(4, "r", 1.0, (Gain("scale", divides=False),))


def test_alpha_of_a_gemm_counts() -> None:
    gemm = h.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5)
    assert found(gemm, h.make_node("Add", ["y", "r"], ["out"])) == Residual(2, "r", 0.5, ())


@pytest.mark.parametrize(
    "chain",
    [
        [h.make_node("Relu", ["y"], ["y1"]), h.make_node("Add", ["y1", "r"], ["out"])],
        [h.make_node("Mul", ["y", "r"], ["y1"]), h.make_node("Add", ["y1", "r"], ["out"])],
        [h.make_node("Div", ["g", "y"], ["y1"]), h.make_node("Add", ["y1", "r"], ["out"])],
        [h.make_node("Sub", ["b", "y"], ["y1"]), h.make_node("Add", ["y1", "r"], ["out"])],
        [h.make_node("Add", ["y", "y"], ["y1"]), h.make_node("Add", ["y1", "r"], ["out"])],
        [h.make_node("Add", ["y", "r"], ["s"]), h.make_node("Mul", ["s", "y"], ["out"])],
        [h.make_node("Identity", ["y"], ["out"])],
        [
            h.make_node("Neg", ["g"], ["g1"]),
            h.make_node("Mul", ["y", "g1"], ["y1"]),
            h.make_node("Add", ["y1", "r"], ["out"]),
        ],
    ],
    ids=["relu", "product", "divisor", "subtracted", "twice", "used again", "no sum", "computed gain"],
)
def test_what_ends_the_search(chain: list[onnx.NodeProto]) -> None:
    assert found(SITE, *chain) is None


def test_an_output_of_the_graph_is_a_second_use() -> None:
    assert found(SITE, h.make_node("Add", ["r", "y"], ["out"]), outputs=("out", "y")) is None
