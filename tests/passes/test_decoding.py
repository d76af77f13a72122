"""Weights that aren't stored as nodes read them: found, decoded as the model computes them, and replaced."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.model_io import load_model
from lowrank_onnx.types import Array, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from tests.passes.models import (
    assert_same,
    compress,
    constant,
    make_model,
    reason_of,
    run_ort,
    run_reference,
    sites_of,
    value,
    weight,
)

ROWS, IN, OUT = 3, 12, 8
MATMUL = h.make_node("MatMul", ["x", "w"], ["y"], name="fc")
INTEGERS = np.random.default_rng(0).integers(-100, 100, (IN, OUT)).astype(np.int8)
SCALES = np.linspace(0.01, 0.1, OUT, dtype=np.float32)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return h.make_node(op_type, inputs.split(), [output], **attributes)


def model_of(*before: onnx.NodeProto, weights: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    return make_model([*before, MATMUL], [value("x", [ROWS, IN])], [value("y", [ROWS, OUT])], weights, opset=opset)


CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "Transpose": ([node("Transpose", "v", "w")], {"v": weight(OUT, IN)}, "float32 behind Transpose"),
    "Transpose with perm": (
        [node("Transpose", "v", "t", perm=[1, 2, 0]), node("Squeeze", "t axes", "w")],
        {"v": weight(OUT, IN, 1), "axes": np.array([-2])},
        "float32 behind Transpose -> Squeeze",
    ),
    "Reshape": (
        [node("Reshape", "v shape", "w")],
        {"v": weight(IN, 2, OUT // 2), "shape": np.array([0, -1])},
        "float32 behind Reshape",
    ),
    "Unsqueeze and Squeeze": (
        [node("Unsqueeze", "v axes", "u"), node("Squeeze", "u", "w")],
        {"v": weight(IN, OUT), "axes": np.array([0, -1])},
        "float32 behind Unsqueeze -> Squeeze",
    ),
    "half": ([node("Cast", "v", "w", to=T.FLOAT)], {"v": weight(IN, OUT, dtype="float16")}, "float16 behind Cast"),
    "bfloat16": (
        [node("Cast", "v", "w", to=T.FLOAT)],
        {"v": weight(IN, OUT, dtype="bfloat16")},
        "bfloat16 behind Cast",
    ),
    "Cast, Mul": (
        [node("Cast", "v", "f", to=T.FLOAT), node("Mul", "s f", "w")],
        {"v": INTEGERS, "s": SCALES},
        "int8 behind Cast -> Mul",
    ),
    "Cast, Sub, Mul": (
        [node("Cast", "v", "f", to=T.FLOAT), node("Sub", "f z", "d"), node("Mul", "d s", "w")],
        {"v": INTEGERS.view(np.uint8), "z": np.full((1, 1), 128, np.float32), "s": SCALES[None]},
        "uint8 behind Cast -> Sub -> Mul",
    ),
    "DequantizeLinear": (
        [node("DequantizeLinear", "v s", "w")],
        {"v": INTEGERS, "s": np.array(0.02, np.float32)},
        "int8 behind DequantizeLinear",
    ),
    "DequantizeLinear by channel": (
        [node("DequantizeLinear", "v s z", "w", axis=-1)],
        {"v": INTEGERS.view(np.uint8), "s": SCALES, "z": np.arange(100, 100 + OUT, dtype=np.uint8)},
        "uint8 behind DequantizeLinear",
    ),
    "DequantizeLinear, Transpose": (
        [node("DequantizeLinear", "v s", "d", axis=0), node("Transpose", "d", "w")],
        {"v": INTEGERS.T.copy(), "s": SCALES},
        "int8 behind DequantizeLinear -> Transpose",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_encoded_weights_are_replaced_with_all_that_decoded_them(case: str) -> None:
    nodes, weights, description = CASES[case]
    model = model_of(*nodes, weights=weights)
    outcome = compress(model)
    (site,) = outcome.sites
    assert site.weight.encoding is not None
    assert (site.weight.encoding.description, site.weight.shape, site.weight.dtype) == (
        description,
        (IN, OUT),
        "float32",
    )
    numeric = [array for name, array in weights.items() if name not in ("axes", "shape")]
    assert site.weight.encoding.nbytes == sum(array.nbytes for array in numeric)
    assert [node.op_type for node in outcome.model.graph.node] == ["MatMul", "MatMul"]
    assert {tensor.name for tensor in outcome.model.graph.initializer} == {"v.left", "v.right"}
    assert_same(model, outcome.model, {"x": weight(ROWS, IN, seed=1)}, tolerance=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_decoded_values_are_those_that_the_model_computes(case: str) -> None:
    nodes, weights, _ = CASES[case]
    model = model_of(*nodes, weights=weights)
    (site,) = sites_of(model)
    model.graph.output.append(value("w", [IN, OUT]))
    _, expected = run_ort(model, {"x": weight(ROWS, IN)})
    np.testing.assert_array_equal(WeightReader(load_model(model), [site.weight]).read(site.weight), expected)


@given(
    shape=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    axis=st.sampled_from([None, 0, 1, -1, -2]),
    signed=st.booleans(),
    with_zero=st.booleans(),
    block=st.integers(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_dequantization_is_that_of_the_operator(
    shape: tuple[int, int], axis: int | None, signed: bool, with_zero: bool, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.int8 if signed else np.uint8
    scale_shape: tuple[int, ...] = ()
    attributes: dict[str, Any] = {}
    if axis is not None:
        attributes["axis"] = axis
        scale_shape = (shape[axis],)
        if block:
            attributes["block_size"] = block
            scale_shape = tuple(-(-n // block) if index == axis % 2 else n for index, n in enumerate(shape))
    q = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    weights: dict[str, Array] = {"q": q, "s": rng.random(scale_shape, np.float32) + np.float32(0.1)}
    if with_zero:
        weights["z"] = rng.integers(0, 100, scale_shape).astype(dtype)
    dequantize = h.make_node("DequantizeLinear", ["q", "s", "z"][: 2 + with_zero], ["w"], **attributes)
    model = make_model([dequantize, MATMUL], [value("x", [2, shape[0]])], [value("y"), value("w")], weights, opset=21)
    expected = run_reference(model, {"x": weight(2, shape[0])})[1]
    del model.graph.output[1]
    (site,) = sites_of(model)
    np.testing.assert_allclose(WeightReader(load_model(model), [site.weight]).read(site.weight), expected, rtol=1e-6)


def test_four_bit_weights_are_unpacked() -> None:
    q = np.random.default_rng(0).integers(-8, 8, (IN, OUT)).astype(ml_dtypes.int4)
    model = model_of(node("DequantizeLinear", "q s", "w"), weights={"q": q, "s": np.array(0.5, np.float32)}, opset=21)
    (site,) = sites_of(model)
    assert site.weight.encoding is not None
    assert site.weight.encoding.nbytes == IN * OUT // 2 + 4
    values = WeightReader(load_model(model), [site.weight]).read(site.weight)
    np.testing.assert_array_equal(values, q.astype(np.float32) * 0.5)


def test_scales_may_be_encoded_themselves_and_shared() -> None:
    nodes = [
        node("Cast", "s", "s32", to=T.FLOAT),
        node("Cast", "a", "fa", to=T.FLOAT),
        node("Mul", "fa s32", "wa"),
        node("Cast", "b", "fb", to=T.FLOAT),
        node("Mul", "fb s32", "wb"),
        node("MatMul", "x wa", "h"),
        node("MatMul", "h wb", "y"),
    ]
    weights: dict[str, Array] = {"a": INTEGERS, "b": INTEGERS.T.copy()[:, :OUT], "s": SCALES.astype(np.float16)}
    model = make_model(nodes, [value("x", [ROWS, IN])], [value("y", [ROWS, OUT])], weights)
    outcome = compress(model, lambda site: site.shape.max_rank)
    assert len(outcome.sites) == 2
    assert [node.op_type for node in outcome.model.graph.node] == ["MatMul"] * 4
    assert not {"s", "s32"} & {t.name for t in outcome.model.graph.initializer}
    assert_same(model, outcome.model, {"x": weight(ROWS, IN, seed=1)}, tolerance=1e-5)


def test_what_others_read_of_the_chain_stays() -> None:
    nodes = [constant("q", INTEGERS), node("Cast", "q", "f", to=T.FLOAT), node("Mul", "f s", "w")]
    model = model_of(*nodes, node("ReduceSum", "s", "sum"), weights={"s": SCALES})
    model.graph.output.append(value("sum", [1]))
    outcome = compress(model)
    assert {tensor.name for tensor in outcome.model.graph.initializer} == {"s", "q.left", "q.right"}
    assert [node.op_type for node in outcome.model.graph.node] == ["ReduceSum", "MatMul", "MatMul"]


def test_one_weight_read_straight_and_transposed_is_tied() -> None:
    nodes = [node("MatMul", "x v", "h"), node("Transpose", "v", "w"), node("MatMul", "h w", "y")]
    model = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])], {"v": weight(4, 6)})
    outcome = compress(model)
    assert [(site.weight.encoding, site.mirrored) for site in outcome.sites] == [(None, False), (None, True)]
    assert {tensor.name for tensor in outcome.model.graph.initializer} == {"v.left", "v.right"}
    assert_same(model, outcome.model, {"x": weight(2, 4, seed=1)}, tolerance=1e-5)


def test_one_weight_transposed_twice_is_one_weight() -> None:
    nodes = [
        node("Transpose", "v", "a"),
        node("Transpose", "v", "b"),
        node("MatMul", "x a", "h"),
        node("MatMul", "h b", "y"),
    ]
    model = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])], {"v": weight(4, 4)})
    outcome = compress(model)
    assert len({site.weight for site in outcome.sites}) == 1
    assert len(outcome.model.graph.initializer) == 2
    assert_same(model, outcome.model, {"x": weight(2, 4, seed=1)}, tolerance=1e-5)


def test_a_decoded_weight_that_is_an_output_or_read_by_another_stays() -> None:
    chain = [node("Transpose", "v", "w")]
    model = model_of(*chain, weights={"v": weight(OUT, IN)})
    model.graph.output.append(value("w", [IN, OUT]))
    assert reason_of(model) == "weight 'v' is also a graph output"
    model = model_of(*chain, node("ReduceSum", "w", "z"), weights={"v": weight(OUT, IN)})
    model.graph.output.append(value("z"))
    assert reason_of(model) == "weight 'v' is also used by 'z' (ReduceSum), which is not rewritten"


def test_a_model_with_quantized_activations_is_left_alone() -> None:
    nodes = [
        node("QuantizeLinear", "x s", "xq"),
        node("DequantizeLinear", "xq s", "xd"),
        node("DequantizeLinear", "q s", "w"),
        h.make_node("MatMul", ["xd", "w"], ["y"], name="fc"),
    ]
    weights: dict[str, Array] = {"q": INTEGERS.view(np.uint8), "s": np.array(0.1, np.float32)}
    model = make_model(nodes, [value("x", [ROWS, IN])], [value("y", [ROWS, OUT])], weights)
    assert reason_of(model) == (
        "its input is quantized too (weight uint8 behind DequantizeLinear): factorize before quantizing"
    )


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Transpose", "v", "w", perm=[0, 0])], {"v": weight(4, 4)}),
        ([node("Reshape", "v shape", "w")], {"v": weight(4, 4), "shape": np.array([5, -1])}),
        ([node("Reshape", "v shape", "w")], {"v": weight(4, 4), "shape": np.array([-1, -1])}),
        ([node("Squeeze", "v axes", "w")], {"v": weight(4, 4), "axes": np.array([0])}),
        ([node("Unsqueeze", "v axes", "w")], {"v": weight(4, 4), "axes": np.array([0, 0])}),
        ([node("Unsqueeze", "v axes", "w")], {"v": weight(4, 4), "axes": np.array([9])}),
        ([node("Cast", "v", "w", to=T.FLOAT16)], {"v": np.ones((4, 4), np.int64)[:, :0]}),
        ([node("Mul", "v s", "w")], {"v": weight(1, 4), "s": weight(4, 1)}),
        ([node("Mul", "v s", "w")], {"v": weight(4, 4), "s": weight(1, 1, 1)}),
        ([node("Div", "s v", "w")], {"v": weight(4, 4), "s": np.ones(1, np.float32)}),
        ([node("Mul", "v s", "w")], {"v": weight(4, 4), "s": weight(1, dtype="float16")}),
        ([node("DequantizeLinear", "q s", "w", axis=3)], {"q": INTEGERS, "s": SCALES}),
        ([node("DequantizeLinear", "q s", "w", axis=0)], {"q": INTEGERS, "s": SCALES}),
        ([node("DequantizeLinear", "q s z", "w")], {"q": INTEGERS, "s": SCALES, "z": np.zeros(3, np.int8)}),
        ([node("DequantizeLinear", "q s z", "w")], {"q": INTEGERS, "s": SCALES, "z": np.zeros(OUT, np.uint8)}),
    ],
)
def test_malformed_steps_are_no_weights(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> None:
    assert reason_of(model_of(*nodes, weights=weights)).startswith(("weight sits behind ", "weight is quantized "))


def test_a_long_chain_is_given_up() -> None:
    nodes = [node("Transpose", f"v{i}", f"v{i + 1}") for i in range(3000)]
    model = model_of(*nodes, node("Transpose", "v3000", "w"), weights={"v0": weight(OUT, IN)})
    assert reason_of(model).startswith("weight sits behind Transpose -> Transpose")


def test_encoded_weights_in_an_outer_graph_serve_inner_ones() -> None:
    body = h.make_graph([node("MatMul", "x w", "inner")], "then", [], [value("inner", [ROWS, OUT])])
    other = h.make_graph([node("MatMul", "x w", "other")], "else", [], [value("other", [ROWS, OUT])])
    nodes = [
        node("DequantizeLinear", "q s", "w"),
        h.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other),
    ]
    weights: dict[str, Array] = {"q": INTEGERS, "s": np.array(0.02, np.float32)}
    inputs = [value("x", [ROWS, IN]), value("c", [], T.BOOL)]
    model = make_model(nodes, inputs, [value("y", [ROWS, OUT])], weights)
    outcome = compress(model)
    assert len(outcome.sites) == 2
    assert [node.op_type for node in outcome.model.graph.node] == ["If"]
    assert_same(model, outcome.model, {"x": weight(ROWS, IN, seed=1), "c": np.array(True)}, tolerance=1e-5)


def test_steps_are_hashable_and_equal_by_value() -> None:
    first, second = (sites_of(model_of(*CASES["Cast, Mul"][0], weights=CASES["Cast, Mul"][1])) for _ in range(2))
    assert isinstance(first[0].weight, WeightRef)
    assert hash(first[0].weight) == hash(second[0].weight)
    assert first[0].weight == second[0].weight
