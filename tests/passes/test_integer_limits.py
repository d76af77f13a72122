from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx import helper as h

from lowrank_onnx.passes.integer_limits import integer_limits


def model(nodes: list[onnx.NodeProto], inputs: dict[str, int], tables: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    values = [h.make_tensor_value_info(name, kind, [None, None]) for name, kind in inputs.items()]
    output = h.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in tables.items()]
    return h.make_model(h.make_graph(nodes, "g", values, [output], stored))


def test_the_smallest_table_behind_an_input_counts() -> None:
    nodes = [
        h.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        h.make_node("Gather", ["words", "wide"], ["a"]),
        h.make_node("Gather", ["kinds", "ids"], ["b"], axis=1),
        h.make_node("Add", ["a", "b"], ["y"]),
    ]
    proto = model(nodes, {"ids": TensorProto.INT32}, {"words": (100, 8), "kinds": (8, 30)})
    assert integer_limits(proto) == {"ids": 30}


def test_arithmetic_on_the_way_ends_what_is_known() -> None:
    nodes = [h.make_node("Add", ["ids", "ids"], ["sum"]), h.make_node("Gather", ["words", "sum"], ["y"])]
    assert integer_limits(model(nodes, {"ids": TensorProto.INT64}, {"words": (100, 8)})) == {}


def test_a_float_input_and_a_computed_table_have_no_limit() -> None:
    nodes = [h.make_node("Relu", ["x"], ["table"]), h.make_node("Gather", ["table", "ids"], ["y"])]
    assert integer_limits(model(nodes, {"x": TensorProto.FLOAT, "ids": TensorProto.INT64}, {})) == {}


def test_a_table_of_the_outer_graph_limits_an_index_inside_a_branch() -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [h.make_node("Gather", ["words", "ids"], [name])]
        return h.make_graph(nodes, name, [], [h.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    node = h.make_node("If", ["flag"], ["y"], then_branch=branch("p"), else_branch=branch("q"))
    proto = model([node], {"ids": TensorProto.INT64, "flag": TensorProto.BOOL}, {"words": (7, 8)})
    assert integer_limits(proto) == {"ids": 7}
