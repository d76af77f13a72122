from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import lowrank_onnx
from lowrank_onnx.config import OP_TYPES, Alpha, Config
from lowrank_onnx.passes import find_sites
from tests.passes.models import (
    assert_same,
    compress,
    constant,
    make_model,
    reason_of,
    sites_of,
    tensor,
    value,
    weight,
)

FLOATS = " (can factorize float16, bfloat16, float32, float64)"
NO_TENSOR = "Constant node 'w' holds {}, expected a dense tensor (value)"
CONV = h.make_node("Conv", ["x", "w"], ["y"], name="conv")
MATMUL = h.make_node("MatMul", ["x", "w"], ["y"], name="fc")


def matmul_of(*before: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None, **options: int) -> onnx.ModelProto:
    """A MatMul whose second input, w, comes from the nodes `before`."""
    return make_model([*before, MATMUL], [value("x", [2, 4])], [value("y", [2, 4])], weights, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_initializers_of_every_float_type_are_weights(dtype: str) -> None:
    (site,) = sites_of(matmul_of(weights={"w": weight(4, 4, dtype=dtype)}))
    assert (site.weight.dtype, site.weight.storage, site.weight.shape) == (dtype, "initializer", (4, 4))


def test_identities_are_followed_and_removed() -> None:
    nodes = [h.make_node("Identity", ["stored"], ["copy"]), h.make_node("Identity", ["copy"], ["w"])]
    model = matmul_of(*nodes, weights={"stored": weight(4, 4)})
    outcome = compress(model)
    assert outcome.sites[0].weight.name == "stored"
    assert [node.op_type for node in outcome.model.graph.node] == ["MatMul", "MatMul"]
    assert [t.name for t in outcome.model.graph.initializer] == ["stored.left", "stored.right"]
    assert_same(model, outcome.model, {"x": weight(2, 4, seed=1)}, tolerance=1e-5)


def test_an_identity_of_a_constant_node_is_followed() -> None:
    model = matmul_of(constant("stored", weight(4, 4)), h.make_node("Identity", ["stored"], ["w"]))
    outcome = compress(model)
    assert outcome.sites[0].weight.storage == "constant"
    assert [node.op_type for node in outcome.model.graph.node] == ["MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("nodes", "stored", "reason"),
    [
        (
            [h.make_node("Cast", ["q"], ["f"], to=T.FLOAT), h.make_node("Pow", ["f", "s"], ["w"])],
            {"q": np.ones((4, 4), np.int8), "s": np.array(1, np.float32)},
            "weight sits behind Cast -> Pow (weight-only quantized, stored as int8)",
        ),
        (
            [h.make_node("DequantizeLinear", ["q", "s"], ["d"]), h.make_node("Neg", ["d"], ["w"])],
            {"q": np.ones((4, 4), np.int8), "s": np.array(1, np.float32)},
            "weight is quantized (int8 behind DequantizeLinear -> Neg)",
        ),
        (
            [h.make_node("ConstantOfShape", ["n"], ["w"])],
            {"n": np.array([4, 4])},
            "weight sits behind ConstantOfShape: fold constants first",
        ),
        (
            [h.make_node("Neg", [f"v{i}" if i else "v"], [f"v{i + 1}"]) for i in range(9)]
            + [h.make_node("Identity", ["v9"], ["w"])],
            {"v": weight(4, 4)},
            "weight sits behind Neg -> Neg -> Neg -> Neg -> Neg -> Neg: fold constants first",
        ),
        ([h.make_node("Constant", [], ["w"], value_floats=[1.0, 2.0])], {}, NO_TENSOR.format("value_floats")),
        ([constant("w", np.ones((4, 4), np.int64))], {}, f"int64 weight{FLOATS}"),
    ],
)
def test_constants_that_are_no_weights(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], reason: str) -> None:
    assert reason_of(matmul_of(*nodes, weights=stored)) == reason


@pytest.mark.parametrize("data_type", [T.INT4, T.UINT4, T.INT8, T.FLOAT8E4M3FNUZ, T.FLOAT4E2M1, 99])
def test_other_element_types_are_named(data_type: int) -> None:
    model = matmul_of()
    model.graph.initializer.append(onnx.TensorProto(name="w", dims=[4, 4], data_type=data_type))
    name = "element type 99" if data_type == 99 else T.DataType.Name(data_type).lower()
    assert reason_of(model) == f"{name} weight{FLOATS}"


def test_sparse_initializers_and_constants() -> None:
    sparse = h.make_sparse_tensor(tensor("w", weight(2)), tensor("indices", np.array([0, 5])), [4, 4])
    model = matmul_of()
    model.graph.sparse_initializer.append(sparse)
    assert reason_of(model) == "sparse initializer 'w'"
    model = matmul_of(h.make_node("Constant", [], ["w"], sparse_value=sparse))
    assert reason_of(model) == NO_TENSOR.format("sparse_value")


def conv_of(*nodes: onnx.NodeProto, inputs: tuple[str, ...] = ("x",)) -> onnx.ModelProto:
    return make_model([*nodes, CONV], [value(name) for name in inputs], [value("y")])


def test_what_depends_on_inputs_is_named() -> None:
    assert reason_of(conv_of(inputs=("x", "w"))) == "weight is graph input 'w' without a value"
    computed = conv_of(h.make_node("Relu", ["k"], ["w"]), inputs=("x", "k"))
    assert reason_of(computed) == "weight is computed at run time (produced by 'w' (Relu))"
    random = conv_of(h.make_node("RandomNormal", [], ["w"], name="noise", shape=[3, 3]))
    assert reason_of(random) == "weight is computed at run time (produced by 'noise' (RandomNormal))"
    assert reason_of(conv_of()) == "weight 'w' isn't defined anywhere in the model"
    circle = conv_of(h.make_node("Identity", ["v"], ["w"]), h.make_node("Identity", ["w"], ["v"]))
    assert reason_of(circle) == "weight is computed at run time (produced by 'w' (Identity))"


def test_noise_like_a_constant_is_no_constant() -> None:
    noise = h.make_node("RandomNormalLike", ["v"], ["w"], name="noise")
    assert reason_of(matmul_of(noise, weights={"v": weight(4, 4)})) == "both inputs are activations"


def test_an_initializer_that_is_an_input_can_be_overridden_from_ir_version_4() -> None:
    model = matmul_of(weights={"w": weight(4, 4)}, ir_version=8)
    model.graph.input.append(value("w", [4, 4]))
    assert reason_of(model) == (
        "initializer 'w' is also a graph input and can be overridden at run time (IR version 8): "
        "--fix-overridable takes its value for good"
    )
    assert len(find_sites(model, op_types=OP_TYPES, fix_overridable=True)[0]) == 1
    model.ir_version = 3
    assert len(sites_of(model)) == 1


def test_a_name_that_is_defined_twice_is_not_trusted() -> None:
    model = matmul_of(h.make_node("Relu", ["x"], ["w"]), weights={"w": weight(4, 4)})
    assert reason_of(model) == "the name 'w' is defined more than once"
    twice = matmul_of(weights={"w": weight(4, 4)})
    twice.graph.initializer.append(twice.graph.initializer[0])
    assert reason_of(twice) == "the name 'w' is defined more than once"


def test_a_dimension_of_size_zero() -> None:
    assert reason_of(matmul_of(weights={"w": weight(4, 0)})) == (
        "weight 'w' has shape [4, 0]: a dimension of size 0 or less"
    )
    model = matmul_of()
    model.graph.initializer.append(onnx.TensorProto(name="w", dims=[-4, 4], data_type=T.FLOAT))
    assert reason_of(model) == "weight 'w' has shape [-4, 4]: a dimension of size 0 or less"


@pytest.mark.parametrize("where", ["binding", "algorithm"])
def test_weights_of_a_training_algorithm_stay(where: str) -> None:
    model = matmul_of(weights={"w": weight(4, 4)})
    info = model.training_info.add()
    if where == "binding":
        info.update_binding.add(key="w", value="w_new")
    else:
        info.algorithm.node.append(h.make_node("Neg", ["w"], ["w_new"]))
    assert reason_of(model) == "weight 'w' is named in the model's training information"


def test_a_subgraph_input_hides_an_outer_weight() -> None:
    body = h.make_graph(
        [h.make_node("Conv", ["x", "w"], ["inner"])],
        "body",
        [value("i", [], T.INT64), value("go", [], T.BOOL), value("w", [2, 2, 3])],
        [value("go", [], T.BOOL), value("w", [2, 2, 3]), value("inner")],
    )
    model = make_model(
        [h.make_node("Loop", ["n", "", "w"], ["w_last", "y"], name="loop", body=body)],
        [value("x"), value("n", [], T.INT64)],
        [value("y")],
        {"w": weight(2, 2, 3)},
    )
    assert reason_of(model) == "weight is 'w', an input of its subgraph"


def test_a_fixed_weight_is_no_input_of_the_result() -> None:
    model = matmul_of(weights={"w": weight(4, 4)}, ir_version=8)
    model.graph.input.append(value("w", [4, 4]))
    config = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd", validate=False)
    assert lowrank_onnx.compress(model, config).status == "unchanged"
    result = lowrank_onnx.compress(model, replace(config, fix_overridable=True)).model
    assert result is not None
    assert [entry.name for entry in result.graph.input] == ["x"]
    assert_same(model, result, {"x": weight(2, 4, seed=3)}, tolerance=1e-5)
