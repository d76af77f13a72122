from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.evaluate.session import Session, open_session
from lowrank_onnx.passes import find_sites
from lowrank_onnx.sensitivity.overridable import make_overridable
from lowrank_onnx.types import Array, WeightRef, numpy_dtype
from lowrank_onnx.weights import SharedWeight, group_by_weight
from tests.passes.models import constant, graphs, make_model, value, weight

X = weight(2, 4, seed=9)


def groups_of(model: onnx.ModelProto) -> tuple[SharedWeight, ...]:
    return group_by_weight(find_sites(model, op_types=OP_TYPES)[0])


def opened(model: onnx.ModelProto) -> Session:
    return open_session(model.SerializeToString(), threads=1, overridden=True)


def stored_names(model: onnx.ModelProto) -> set[str]:
    """All initializers and the outputs of all Constant nodes, subgraphs included."""
    held = {tensor.name for graph in graphs(model) for tensor in graph.initializer}
    return held | {node.output[0] for graph in graphs(model) for node in graph.node if node.op_type == "Constant"}


def overridden(model: onnx.ModelProto) -> tuple[Session, dict[WeightRef, str]]:
    """A session of the copy in which every weight can be overridden; the original is left as it was."""
    before = model.SerializeToString()
    copy = make_overridable(model, [group.weight for group in groups_of(model)])
    assert model.SerializeToString() == before
    assert copy.reasons == {}
    assert {group.weight.name for group in groups_of(model) if group.weight.scope}.isdisjoint(
        stored_names(copy.skeleton)
    )
    onnx.checker.check_model(copy.skeleton, full_check=True)
    session = opened(copy.skeleton)
    assert {spec.name for spec in session.overridable} >= set(copy.names.values())
    return session, copy.names


def chain(dtype: str = "float32", **options: Any) -> onnx.ModelProto:
    """x (n, 4) @ a (4, 6) -> Relu -> @ b (6, 3), as initializers."""
    code = helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    return make_model(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"]),
        ],
        [value("x", ["n", 4], code)],
        [value("y", ["n", 3], code)],
        {"a": weight(4, 6, dtype=dtype), "b": weight(6, 3, seed=1, dtype=dtype)},
        **options,
    )


def test_an_initializer_keeps_its_name_and_its_value_until_it_is_overridden() -> None:
    model = chain()
    session, names = overridden(model)
    assert list(names.values()) == ["a", "b"]
    expected = opened(model).run({"x": X})["y"]
    np.testing.assert_allclose(session.run({"x": X})["y"], expected, rtol=1e-5)
    np.testing.assert_allclose(session.run({"x": X, "b": -weight(6, 3, seed=1)})["y"], -expected, rtol=1e-5)


def test_only_the_weights_asked_for_can_be_overridden() -> None:
    model = chain()
    (first, _) = groups_of(model)
    session = opened(make_overridable(model, [first.weight]).skeleton)
    assert [spec.name for spec in session.overridable] == ["a"]


# What onnxruntime fuses, folds or prepacks where the weight w is constant.
OPERATORS = {
    "MatMul + Add + Relu": [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ],
    "Gemm": [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
    "Conv + BatchNormalization": [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "b", "b", "b", "v"], ["y"]),
    ],
    "ConvTranspose": [helper.make_node("ConvTranspose", ["x", "w"], ["y"])],
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("operators", "shape", "activation"),
    [
        ("MatMul + Add + Relu", (16, 16), (3, 16)),
        ("Gemm", (16, 16), (3, 16)),
        ("Conv + BatchNormalization", (16, 16, 3, 3), (1, 16, 6, 6)),
        ("ConvTranspose", (16, 16, 3, 3), (1, 16, 6, 6)),
    ],
)
def test_an_override_does_what_another_stored_weight_does(
    operators: str, shape: tuple[int, ...], activation: tuple[int, ...], dtype: str
) -> None:
    code = helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    other = weight(*shape, seed=5, dtype=dtype)

    def model(values: Array) -> onnx.ModelProto:
        small = {"b": weight(16, seed=2, dtype=dtype), "v": np.abs(weight(16, seed=3, dtype=dtype))}
        used = {name for node in OPERATORS[operators] for name in node.input}
        stored = {"w": values, **{name: array for name, array in small.items() if name in used}}
        return make_model(
            OPERATORS[operators], [value("x", activation, code)], [value("y", [None] * len(activation), code)], stored
        )

    session, names = overridden(model(weight(*shape, dtype=dtype)))
    (name,) = names.values()
    x = weight(*activation, seed=7, dtype=dtype)
    found, expected = session.run({"x": x, name: other})["y"], opened(model(other)).run({"x": x})["y"]
    tolerance = {"float32": 1e-5, "float16": 4e-3}[dtype]
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    assert difference <= tolerance * np.linalg.norm(expected.astype(np.float64))
    assert not np.allclose(found, session.run({"x": x})["y"], rtol=0.1)


def test_bfloat16_weights_can_be_overridden() -> None:
    stored = weight(4, 4, dtype="bfloat16")
    model = make_model(
        [
            helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "wide"], ["y"]),
        ],
        [value("x", [2, 4])],
        [value("y", None)],
        {"w": stored},
    )
    copy = make_overridable(model, [WeightRef((), "w", "initializer", "bfloat16", (4, 4))])
    session = opened(copy.skeleton)
    assert [(spec.name, spec.dtype) for spec in session.overridable] == [("w", "bfloat16")]
    doubled = session.run({"x": X, "w": stored + stored})["y"]
    np.testing.assert_allclose(doubled, 2 * session.run({"x": X})["y"], rtol=1e-5)


def test_a_constant_node_becomes_an_initializer() -> None:
    stored = weight(4, 4)
    model = make_model(
        [
            helper.make_node("Neg", ["x"], ["n"]),
            constant("w", stored),
            helper.make_node("Identity", ["w"], ["copy"]),
            helper.make_node("MatMul", ["n", "copy"], ["y"]),
        ],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        value_info=[value("w", [4, 4])],
    )
    session, names = overridden(model)
    assert list(names.values()) == ["w"]
    np.testing.assert_allclose(session.run({"x": X})["y"], -X @ stored, rtol=1e-5)
    np.testing.assert_allclose(session.run({"x": X, "w": 3 * stored})["y"], -3 * X @ stored, rtol=1e-5)


def test_below_ir_version_4_the_other_initializers_stay_constant() -> None:
    model = chain(ir_version=3, opset=8)
    model.graph.input.extend(value(name, shape) for name, shape in (("a", [4, 6]), ("b", [6, 3])))
    (first, _) = groups_of(model)
    copy = make_overridable(model, [first.weight]).skeleton
    assert copy.ir_version == 4
    assert [each.name for each in copy.graph.input] == ["x", "a"]
    session = opened(copy)
    assert [spec.name for spec in session.overridable] == ["a"]
    expected = opened(model).run({"x": X})["y"]
    np.testing.assert_allclose(session.run({"x": X})["y"], expected, rtol=1e-5)
    np.testing.assert_allclose(session.run({"x": X, "a": 2 * weight(4, 6)})["y"], 2 * expected, rtol=1e-5)


def test_overridable_inputs_of_the_model_stay_what_they_are() -> None:
    model = chain()
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [2.0]))
    model.graph.input.append(value("scale", [1]))
    model.graph.node[2].output[0] = "unscaled"
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "scale"], ["y"]))
    session, _ = overridden(model)
    assert {spec.name for spec in session.overridable} == {"a", "b", "scale"}


def branches(*, storage: str) -> onnx.ModelProto:
    """An If whose branches both hold a weight of the same name: then ``x @ w``, else ``-x @ w``."""

    def branch(name: str, sign: str, seed: int) -> onnx.GraphProto:
        stored = weight(4, 4, seed=seed)
        nodes = [
            helper.make_node(sign, ["x"], [f"{name}_x"]),
            helper.make_node("MatMul", [f"{name}_x", "w"], [f"{name}_y"]),
        ]
        initializers = []
        if storage == "constant":
            nodes.insert(0, constant("w", stored))
        else:
            initializers = [onnx.numpy_helper.from_array(stored, "w")]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y", [2, 4])], initializers)

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("then", "Identity", 1), else_branch=branch("else", "Neg", 2)
    )
    return make_model([node], [value("x", [2, 4]), value("c", [], TensorProto.BOOL)], [value("y", [2, 4])])


@pytest.mark.parametrize("storage", ["initializer", "constant"])
def test_weights_of_subgraphs_move_up_under_names_of_their_own(storage: str) -> None:
    session, names = overridden(branches(storage=storage))
    assert {ref.scope: name for ref, name in names.items()} == {
        ((0, "else_branch"),): "w_1",
        ((0, "then_branch"),): "w_2",
    }
    yes, no = np.array(True), np.array(False)
    then, other = X @ weight(4, 4, seed=1), -X @ weight(4, 4, seed=2)
    np.testing.assert_allclose(session.run({"x": X, "c": yes})["y"], then, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.run({"x": X, "c": no})["y"], other, rtol=1e-5, atol=1e-6)
    double = {"w_2": 2 * weight(4, 4, seed=1)}
    np.testing.assert_allclose(session.run({"x": X, "c": yes, **double})["y"], 2 * then, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.run({"x": X, "c": no, **double})["y"], other, rtol=1e-5, atol=1e-6)


def test_a_loop_runs_with_the_overridden_weight_at_every_turn() -> None:
    body = helper.make_graph(
        [
            constant("w", np.eye(4, dtype=np.float32)),
            helper.make_node("Identity", ["w"], ["seen"]),
            helper.make_node("MatMul", ["a", "seen"], ["b"]),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("going", [], TensorProto.BOOL), value("a", [2, 4])],
        [value("on", [], TensorProto.BOOL), value("b", [2, 4])],
    )
    model = make_model(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        {"trips": np.array(3)},
    )
    session, names = overridden(model)
    (name,) = names.values()
    np.testing.assert_array_equal(session.run({"x": X})["y"], X)
    np.testing.assert_array_equal(session.run({"x": X, name: 2 * np.eye(4, dtype=np.float32)})["y"], 8 * X)


def test_a_weight_that_its_subgraph_returns_cannot_move() -> None:
    model = branches(storage="constant")
    ref = groups_of(model)[0].weight
    for attribute in model.graph.node[0].attribute:
        attribute.g.output.append(value("w", [4, 4]))
    model.graph.node[0].output.append("returned")
    copy = make_overridable(model, [ref])
    assert copy.names == {}
    assert copy.reasons == {ref: "weight 'w' is also an output of its subgraph"}
    onnx.checker.check_model(copy.skeleton, full_check=True)


def test_a_weight_of_another_model_is_refused() -> None:
    for wrong in (
        WeightRef((), "nothing", "initializer", "float32", (4, 6)),
        WeightRef((), "a", "constant", "float32", (4, 6)),
        WeightRef((), "h", "constant", "float32", (4, 6)),
        WeightRef(((0, "body"),), "a", "initializer", "float32", (4, 6)),
    ):
        with pytest.raises(ValueError, match=rf"the model has no {wrong.storage} '{wrong.name}' in scope"):
            make_overridable(chain(), [wrong])


def encoded(**options: Any) -> onnx.ModelProto:
    """x (n, 4) @ dequantized w (4, 6), read by two nodes, one of them in a subgraph; the result is their sum."""
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Identity", ["a"], ["e"])], "else", [], [value("e", None)])
    return make_model(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        [value("x", ["n", 4]), value("c", [], TensorProto.BOOL)],
        [value("y", ["n", 6])],
        {"q": np.arange(-12, 12, dtype=np.int8).reshape(4, 6), "scale": np.linspace(0.1, 0.6, 6, dtype=np.float32)},
        **options,
    )


def decoded(weight: WeightRef) -> Array:
    del weight
    quantized = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)
    return quantized * np.linspace(0.1, 0.6, 6, dtype=np.float32)


def test_a_weight_that_is_stored_encoded_is_overridden_as_its_nodes_read_it() -> None:
    model = encoded()
    (group,) = groups_of(model)
    copy = make_overridable(model, [group.weight], readers={group.weight: group.sites}, decode=decoded)
    assert copy.reasons == {}
    assert copy.names == {group.weight: "q.decoded"}
    onnx.checker.check_model(copy.skeleton, full_check=True)
    feed = {"x": X, "c": np.array(True)}
    session = opened(copy.skeleton)
    expected = opened(model).run(feed)["y"]
    np.testing.assert_allclose(session.run(feed)["y"], expected, rtol=1e-5)
    given = weight(4, 6, seed=5)
    np.testing.assert_allclose(session.run({**feed, "q.decoded": given})["y"], 2 * X @ given, rtol=1e-4, atol=1e-5)


def test_an_encoded_weight_without_its_values_or_too_large_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoded()
    (group,) = groups_of(model)
    readers = {group.weight: group.sites}
    plain = make_overridable(model, readers)
    assert plain.reasons == {group.weight: "weight 'q' is stored as int8 behind DequantizeLinear"}
    monkeypatch.setattr("lowrank_onnx.sensitivity.overridable.MOST_DECODED_BYTES", 95)
    full = make_overridable(model, readers, readers=readers, decode=decoded)
    assert full.names == {}
    assert full.reasons == {
        group.weight: "weight 'q' is stored as int8 behind DequantizeLinear, and too large (96 bytes) to be decoded "
        "beside the others"
    }
