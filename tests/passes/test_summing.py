"""Which weights the outputs of a site end in, with nothing on the way that treats features differently."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.passes.summing import find_summing_sites
from tests.passes.models import make_model, sites_of, value, weight

WEIGHTS = {
    "w": weight(4, 6),
    "v": weight(6, 5, seed=1),
    "u": weight(6, 3, seed=2),
    "b": weight(6, seed=3),
    "g": weight(6, seed=4),
    "half": np.array([0.5], np.float32),
    "one": np.array(1.0, np.float32),
}
SITE = h.make_node("MatMul", ["x", "w"], ["y"])


def ends(*nodes: onnx.NodeProto, outputs: dict[str, int], head: onnx.NodeProto = SITE) -> list[str]:
    model = make_model(
        [head, *nodes], [value("x", ["n", 4])], [value(name, ["n", size]) for name, size in outputs.items()], WEIGHTS
    )
    site, *others = sites_of(model)
    return [one.weight.name for one in find_summing_sites(read_dataflow(model), site, [site, *others])]


def test_all_that_sum_over_the_outputs() -> None:
    nodes = [
        h.make_node("Add", ["y", "b"], ["h"]),
        h.make_node("Relu", ["h"], ["r"]),
        h.make_node("MatMul", ["r", "v"], ["p"]),
        h.make_node("Gemm", ["r", "u"], ["q"]),
    ]
    assert ends(*nodes, outputs={"p": 5, "q": 3}) == ["v", "u"]


def test_an_activation_made_of_several_nodes() -> None:
    nodes = [
        h.make_node("Div", ["y", "half"], ["a"]),
        h.make_node("Erf", ["a"], ["e"]),
        h.make_node("Add", ["e", "one"], ["s"]),
        h.make_node("Mul", ["y", "s"], ["m"]),
        h.make_node("Mul", ["m", "half"], ["r"]),
        h.make_node("MatMul", ["r", "v"], ["p"]),
    ]
    assert ends(*nodes, outputs={"p": 5}) == ["v"]


@pytest.mark.parametrize(
    "between",
    [
        h.make_node("Softmax", ["y"], ["r"]),  # mixes features
        h.make_node("Mul", ["y", "g"], ["r"]),  # gives each a weight of its own
        h.make_node("Div", ["one", "y"], ["r"], domain="other"),
        h.make_node("Add", ["y", "y2"], ["r"]),  # a sum has other readers
        h.make_node("Flatten", ["y"], ["r"]),  # features may be anywhere afterwards
    ],
)
def test_what_treats_features_differently_ends_the_search(between: onnx.NodeProto) -> None:
    nodes = [h.make_node("Tanh", ["y"], ["y2"])] if "y2" in between.input else []
    assert ends(*nodes, between, h.make_node("MatMul", ["r", "v"], ["p"]), outputs={"p": 5}) == []


def test_an_output_of_the_model_counts_by_itself() -> None:
    assert ends(h.make_node("MatMul", ["y", "v"], ["p"]), outputs={"p": 5, "y": 6}) == []


def convolutions(*between: onnx.NodeProto, groups: int = 1) -> list[str]:
    stored = {"w": weight(6, 4 // groups, 3, 3), "v": weight(24, 5, seed=1)}
    model = make_model(
        [
            h.make_node("Conv", ["x", "w"], ["y"], group=groups),
            *between,
            h.make_node("Gemm", ["r", "v"], ["p"]),
        ],
        [value("x", ["n", 4, 6, 6])],
        [value("p", ["n", 5])],
        stored,
    )
    site, *others = sites_of(model)
    return [one.weight.name for one in find_summing_sites(read_dataflow(model), site, others)]


def test_channels_stay_together_when_they_are_flattened() -> None:
    pooled = h.make_node("MaxPool", ["y"], ["m"], kernel_shape=[2, 2], strides=[2, 2])
    flat = h.make_node("Flatten", ["m"], ["r"])
    assert convolutions(pooled, flat) == ["v"]
    assert convolutions(pooled, flat, groups=2) == []
    assert convolutions(pooled, h.make_node("Transpose", ["m"], ["t"]), h.make_node("Flatten", ["t"], ["r"])) == []
