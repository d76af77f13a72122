"""Operators of onnxruntime's own domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.types import Array
from tests.passes.models import assert_same, compress, make_model, reason_of, value, weight


def fused(op_type: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return h.make_node(op_type, inputs, ["y"], name="fused", domain="com.microsoft", **attributes)


def model_of(node: onnx.NodeProto, shape: tuple[int, ...], weights: dict[str, Array]) -> onnx.ModelProto:
    return make_model([node], [value("x", shape)], [value("y", [None] * len(shape))], weights)


def check(model: onnx.ModelProto, shape: tuple[int, ...], operators: list[tuple[str, str]]) -> None:
    outcome = compress(model)
    assert [(node.domain, node.op_type) for node in outcome.model.graph.node] == operators
    assert_same(model, outcome.model, {"x": weight(*shape, seed=1)}, tolerance=2e-5)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("stored", [0, 1])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_fused_matmul_with_the_weight_on_the_right(transposed: int, stored: int, batch: tuple[int, ...]) -> None:
    node = fused("FusedMatMul", ["x", "w"], alpha=0.25, transA=transposed, transB=stored)
    shape = (*batch, 6, 4) if transposed else (*batch, 4, 6)
    model = model_of(node, shape, {"w": weight(5, 6) if stored else weight(6, 5)})
    check(model, shape, [("com.microsoft", "FusedMatMul"), ("", "MatMul")])


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("stored", [0, 1])
def test_fused_matmul_with_the_weight_on_the_left(transposed: int, stored: int) -> None:
    node = fused("FusedMatMul", ["w", "x"], alpha=2.0, transA=stored, transB=transposed)
    shape = (2, 4, 6) if transposed else (2, 6, 4)
    model = model_of(node, shape, {"w": weight(6, 5) if stored else weight(5, 6)})
    check(model, shape, [("com.microsoft", "FusedMatMul"), ("", "MatMul")])


def test_fused_matmul_that_moves_batches_is_declined() -> None:
    model = model_of(fused("FusedMatMul", ["x", "w"], transBatchA=1), (4, 6), {"w": weight(6, 5)})
    assert reason_of(model) == "it moves a batch dimension (transBatchA, transBatchB)"
    model = model_of(fused("FusedMatMul", ["x", "w"]), (2, 4, 6), {"w": weight(2, 6, 5)})
    assert reason_of(model) == "weight has shape [2, 6, 5], expected a matrix"


@pytest.mark.parametrize("stored", [0, 1])
def test_fused_gemm(stored: int) -> None:
    attributes = {"activation": "LeakyRelu", "activation_alpha": 0.125}
    node = fused("FusedGemm", ["x", "w", "b"], alpha=0.5, transB=stored, **attributes)
    weights = {"w": weight(5, 6) if stored else weight(6, 5), "b": weight(5)}
    check(model_of(node, (4, 6), weights), (4, 6), [("", "MatMul"), ("com.microsoft", "FusedGemm")])


def test_fused_conv() -> None:
    node = fused(
        "FusedConv",
        ["x", "w", "b"],
        pads=[1, 1, 1, 1],
        strides=[2, 1],
        activation="Clip",
        activation_params=[-0.5, 0.5],
    )
    weights = {"w": weight(6, 4, 3, 3), "b": weight(6)}
    check(model_of(node, (1, 4, 7, 6), weights), (1, 4, 7, 6), [("", "Conv"), ("com.microsoft", "FusedConv")])


def test_fused_conv_with_a_sum_is_declined() -> None:
    node = fused("FusedConv", ["x", "w", "", "z"], activation="Relu")
    model = make_model([node], [value("x"), value("z")], [value("y")], {"w": weight(6, 4, 3, 3)})
    assert reason_of(model) == "it adds another tensor (input Z), which isn't covered"


@pytest.mark.parametrize("sizes", [None, [8, 8, 4]])
def test_attention(sizes: list[int] | None) -> None:
    attributes: dict[str, Any] = {"num_heads": 2, "unidirectional": 1} | ({"qkv_hidden_sizes": sizes} if sizes else {})
    width = sum(sizes) if sizes else 24
    node = fused("Attention", ["x", "w", "b", "mask"], **attributes)
    weights = {"w": weight(12, width), "b": weight(width), "mask": np.array([5, 3], np.int32)}
    check(model_of(node, (2, 5, 12), weights), (2, 5, 12), [("", "MatMul"), ("com.microsoft", "Attention")])


def test_the_same_names_in_other_domains_are_other_operators() -> None:
    node = h.make_node("FusedMatMul", ["x", "w"], ["y"], name="fused", domain="elsewhere")
    model = model_of(node, (4, 6), {"w": weight(6, 5)})
    model.opset_import.add(domain="elsewhere", version=1)
    assert reason_of(model) == "operator FusedMatMul of domain 'elsewhere' isn't covered"
