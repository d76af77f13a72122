from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import Array, numpy_dtype
from tests.passes.models import assert_same, compress, constant, make_model, reason_of, run_ort, sites_of, value, weight

ROWS, OUT = 12, 8


def lookup(
    table: Array, shape: tuple[int, ...] = (2, 3), index_type: int = T.INT64, **attributes: Any
) -> onnx.ModelProto:
    node = h.make_node("Gather", ["table", "ids"], ["y"], name="embed", **attributes)
    data_type = h.np_dtype_to_tensor_dtype(table.dtype)
    made = value("y", [None] * (len(shape) + 1), data_type)
    return make_model([node], [value("ids", shape, index_type)], [made], {"table": table})


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([{}, {"axis": 0}, {"axis": -2}]),
    st.sampled_from([T.INT32, T.INT64]),
    st.booleans(),
)
def test_rows_are_the_same_at_full_rank(shape: list[int], axis: dict[str, int], index_type: int, fused: bool) -> None:
    model = lookup(weight(ROWS, OUT), tuple(shape), index_type, **axis)
    outcome = compress(model)
    nodes = outcome.model.graph.node
    assert [node.op_type for node in nodes] == ["Gather", "MatMul"]
    assert (nodes[1].name, list(nodes[0].attribute)) == ("embed", list(model.graph.node[0].attribute))
    drawn = np.random.default_rng(1).integers(-ROWS, ROWS, shape)
    feed = {"ids": np.asarray(drawn, h.tensor_dtype_to_np_dtype(index_type))}
    assert_same(model, outcome.model, feed, tolerance=1e-5, run=lambda m, f: run_ort(m, f, optimized=fused))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("float64", 1e-12)])
def test_other_dtypes(dtype: str, tolerance: float) -> None:
    table = weight(ROWS, OUT, dtype=dtype)
    model = lookup(table)
    ids = np.arange(6).reshape(2, 3)
    outcome = compress(model)
    parts = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in outcome.model.graph.initializer}
    assert {t.data_type for t in outcome.model.graph.initializer} == {h.np_dtype_to_tensor_dtype(numpy_dtype(dtype))}
    wide = table.astype(np.float64)
    found = parts["table.left"][ids] @ parts["table.right"]
    np.testing.assert_allclose(found, wide[ids], atol=tolerance * float(np.linalg.norm(wide)))
    if dtype != "bfloat16":
        assert_same(model, outcome.model, {"ids": ids}, tolerance=tolerance)


def test_what_truncation_leaves_out_is_the_error_of_each_row() -> None:
    table = weight(ROWS, OUT)
    outcome = compress(lookup(table, (ROWS,)), rank_of=lambda site: 3)
    (found,) = run_ort(outcome.model, {"ids": np.arange(ROWS)})
    tail = np.linalg.svd(table, compute_uv=False)[3:]
    assert np.linalg.norm(found - table) == pytest.approx(np.linalg.norm(tail), rel=1e-4)


def test_shapes_of_what_is_new() -> None:
    outcome = compress(lookup(weight(ROWS, OUT)), rank_of=lambda site: 3)
    (site,) = outcome.sites
    assert (site.input, site.counted_features, [form.name for form in site.forms]) == ("ids", OUT, ["embedding"])
    mid = next(info for info in outcome.model.graph.value_info if info.name == "y.mid")
    assert [dim.dim_value for dim in mid.type.tensor_type.shape.dim] == [2, 3, 3]
    assert {t.name: list(t.dims) for t in outcome.model.graph.initializer} == {
        "table.left": [ROWS, 3],
        "table.right": [3, OUT],
    }


def test_lookups_in_one_table_share_its_factors() -> None:
    nodes = [h.make_node("Gather", ["table", name], [f"y{name}"], name=name) for name in ("a", "b")]
    model = make_model(
        nodes,
        [value("a", [2], T.INT64), value("b", [1, 2], T.INT64)],
        [value("ya", [2, OUT]), value("yb", [1, 2, OUT])],
        {"table": weight(ROWS, OUT)},
    )
    outcome = compress(model)
    assert [t.name for t in outcome.model.graph.initializer] == ["table.left", "table.right"]
    assert_same(model, outcome.model, {"a": np.array([1, 5]), "b": np.array([[0, 11]])}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lookup(weight(ROWS, OUT), axis=1), "it looks up along axis 1 of its table, expected rows (axis 0)"),
        (lookup(weight(ROWS, OUT), axis=-1), "it looks up along axis -1 of its table, expected rows (axis 0)"),
        (lookup(weight(2, ROWS, OUT), (2,)), f"table of shape [2, {ROWS}, {OUT}], expected a matrix"),
        (lookup(weight(ROWS, 1)), f"its matrices are {ROWS} x 1: factors wouldn't be smaller at any rank"),
        (
            make_model(
                [constant("ids", np.array([1, 2])), h.make_node("Gather", ["table", "ids"], ["y"])],
                [],
                [value("y", [2, OUT])],
                {"table": weight(ROWS, OUT)},
            ),
            "its indices are constant: fold constants first",
        ),
    ],
)
def test_reasons(model: onnx.ModelProto, reason: str) -> None:
    assert reason_of(model) == reason


@pytest.mark.parametrize("table", [np.ones((4, 4), np.int64), weight(9)], ids=["whole numbers", "a vector"])
def test_what_serves_shape_arithmetic_is_passed_over(table: Array) -> None:
    assert find_sites(lookup(table), op_types=OP_TYPES) == ((), ())


def test_a_lookup_in_an_activation_is_passed_over() -> None:
    node = h.make_node("Gather", ["x", "ids"], ["y"])
    model = make_model([node], [value("x", [4, 4]), value("ids", [2], T.INT64)], [value("y", [2, 4])])
    assert find_sites(model, op_types=OP_TYPES) == ((), ())


def test_a_table_inside_a_subgraph() -> None:
    inner = h.make_graph(
        [h.make_node("Gather", ["table", "ids"], ["e"], name="embed")],
        "then",
        [],
        [value("e", [2, OUT])],
        [numpy_helper.from_array(weight(ROWS, OUT), "table")],
    )
    other = h.make_graph([constant("z", np.zeros((2, OUT), np.float32))], "else", [], [value("z", [2, OUT])])
    node = h.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    model = make_model([node], [value("c", [], T.BOOL), value("ids", [2], T.INT64)], [value("y", [2, OUT])])
    assert len(sites_of(model)) == 1
    feed = {"c": np.array(True), "ids": np.array([3, 7])}
    assert_same(model, compress(model).model, feed, tolerance=1e-5)
