from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import Array, Skipped
from tests.passes.models import make_model, value, weight

RECURRENT = "recurrent weights: the recurrence runs inside the operator, which takes dense weights only"
INTEGER = "integer arithmetic on a quantized weight: factorize before quantizing"
OTHER = "operator {} of domain 'com.microsoft' isn't covered"
BYTES = np.ones((4, 4), np.int8)


def skipped_of(node: onnx.NodeProto, weights: dict[str, Array]) -> tuple[Skipped, ...]:
    sites, skipped = find_sites(make_model([node], [value("x", None)], [value("y", None)], weights), op_types=OP_TYPES)
    assert sites == ()
    return skipped


@pytest.mark.parametrize(
    ("op_type", "domain", "inputs", "weights", "reason", "parameters"),
    [
        (
            "LSTM",
            "",
            ["x", "w", "r", "b"],
            {"w": weight(1, 8, 3), "r": weight(1, 8, 2), "b": weight(1, 16)},
            RECURRENT,
            40,
        ),
        ("GRU", "", ["x", "w", "r"], {"w": weight(1, 6, 3), "r": weight(1, 6, 2)}, RECURRENT, 30),
        ("RNN", "", ["x", "w", "r"], {"w": weight(1, 2, 3), "r": weight(1, 2, 2)}, RECURRENT, 10),
        ("DeformConv", "", ["x", "w", "x"], {"w": weight(4, 4, 3, 3)}, "DeformConv isn't covered", 144),
        ("MatMulInteger", "", ["x", "w"], {"w": BYTES}, INTEGER, 16),
        ("ConvInteger", "", ["x", "w"], {"w": BYTES[:, :, None]}, INTEGER, 16),
        ("QLinearMatMul", "", ["x", "s", "z", "w", "s", "z", "s", "z"], {"w": BYTES}, INTEGER, 16),
        ("QLinearConv", "", ["x", "s", "z", "w", "s", "z", "s", "z"], {"w": BYTES}, INTEGER, 16),
        ("QAttention", "com.microsoft", ["x", "w"], {"w": BYTES}, OTHER.format("QAttention"), 16),
        (
            "MatMulNBits",
            "com.microsoft",
            ["x", "w", "s"],
            {"w": BYTES, "s": weight(4)},
            OTHER.format("MatMulNBits"),
            16,
        ),
        (
            "DecoderAttention",
            "com.microsoft",
            ["x", "w", "b"],
            {"w": weight(4, 12), "b": weight(12)},
            OTHER.format("DecoderAttention"),
            48,
        ),
    ],
)
def test_operators_that_hold_weights_are_listed(
    op_type: str, domain: str, inputs: list[str], weights: dict[str, Array], reason: str, parameters: int
) -> None:
    node = h.make_node(op_type, inputs, ["y"], name="node", domain=domain)
    assert skipped_of(node, weights) == (Skipped("node", op_type, reason, parameters),)


@pytest.mark.parametrize(
    ("op_type", "domain", "inputs", "weights"),
    [
        ("LSTM", "", ["x", "x", "x"], {}),
        ("LSTM", "", ["x"], {}),
        ("Add", "", ["x", "w"], {"w": weight(4, 4)}),
        ("QAttention", "com.microsoft", ["x", "x"], {}),
        ("LayerNormalization", "com.microsoft", ["x", "w"], {"w": weight(4)}),
        ("Custom", "com.acme", ["", "x"], {}),
    ],
)
def test_operators_without_weights_are_not(
    op_type: str, domain: str, inputs: list[str], weights: dict[str, Array]
) -> None:
    assert skipped_of(h.make_node(op_type, inputs, ["y"], domain=domain), weights) == ()


def test_quantized_weights_behind_other_operators_are_counted() -> None:
    node = h.make_node("QAttention", ["x", "w"], ["y"], name="node", domain="com.microsoft")
    model = make_model(
        [h.make_node("DequantizeLinear", ["q", "s"], ["w"]), node],
        [value("x", None)],
        [value("y", None)],
        {"q": BYTES, "s": np.array(1, np.float32)},
    )
    (skipped,) = find_sites(model, op_types=OP_TYPES)[1]
    assert (skipped.name, skipped.parameters) == ("node", 16)
