"""One stored matrix that nodes read in different layouts: one pair of factors, read by each in its own."""

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

from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import Array
from lowrank_onnx.vocabulary import OP_TYPES
from tests.passes.models import (
    assert_same,
    compress,
    constant,
    make_model,
    reasons_of,
    run_ort,
    run_reference,
    sites_of,
    value,
    weight,
)

TOKENS, WIDTH = 14, 6


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return h.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def turned(axes: tuple[int, ...] = (1, 0)) -> onnx.NodeProto:
    return node("Transpose", "table", "turned", perm=axes)


STRAIGHT: dict[str, list[onnx.NodeProto]] = {
    "lookup": [node("Gather", "table ids", "a")],
    "MatMul": [node("MatMul", "wide table", "a")],
    "Gemm": [node("Gemm", "wide table", "a")],
    "Gemm, activation transposed": [node("Gemm", "tall table", "a", transA=1)],
    "MatMul behind two dimensions of 1": [
        constant("shape", np.array([1, TOKENS, WIDTH])),
        node("Reshape", "table shape", "batch"),
        node("Einsum", "wide matrix", "a", equation="nv,vd->nd"),
        node("Squeeze", "batch", "matrix"),
    ],
}
"""Readers of W (tokens, width): one of them gives "a"."""

MIRRORED: dict[str, list[onnx.NodeProto]] = {
    "Gemm": [node("Gemm", "x table", "y", transB=1)],
    "Gemm with a bias": [node("Gemm", "x table bias", "y", transB=1, alpha=0.5)],
    "MatMul": [turned(), node("MatMul", "deep turned", "y")],
    "MatMul, on the left": [node("MatMul", "table column", "y")],
    "Einsum": [node("Einsum", "deep table", "y", equation="btd,vd->btv")],
    "FusedMatMul": [h.make_node("FusedMatMul", ["deep", "table"], ["y"], "y", domain="com.microsoft", transB=1)],
    "Gemm on the left": [node("Gemm", "table column", "y")],
    "Gemm on the left, transposed": [turned(), node("Gemm", "turned column", "y", transA=1)],
}
"""Readers of W' (width, tokens) that give "y"."""

INPUTS: dict[str, tuple[int, ...]] = {
    "wide": (3, TOKENS),
    "tall": (TOKENS, 3),
    "x": (3, WIDTH),
    "deep": (2, 3, WIDTH),
    "column": (WIDTH, 4),
}


def tied(straight: list[onnx.NodeProto], mirrored: list[onnx.NodeProto], dtype: str = "float32") -> onnx.ModelProto:
    """Both readers in one graph, with the inputs that they take."""
    nodes = [*straight, *mirrored]
    nodes.sort(
        key=lambda one: (
            ("Constant", "Reshape", "Transpose", "Squeeze").index(one.op_type)
            if one.op_type in ("Constant", "Reshape", "Transpose", "Squeeze")
            else 9
        )
    )
    read = {name for one in nodes for name in one.input}
    table, bias = weight(TOKENS, WIDTH, dtype=dtype), weight(TOKENS, seed=5, dtype=dtype)
    data_type = h.np_dtype_to_tensor_dtype(table.dtype)
    inputs = [value(name, shape, data_type) for name, shape in INPUTS.items() if name in read]
    inputs += [value("ids", [2, 2], T.INT64)] if "ids" in read else []
    outputs = [value("a", [None] * (3 if "ids" in read else 2), data_type)]
    outputs += [value("y", [None] * (3 if "deep" in read else 2), data_type)]
    weights = {"table": table, **({"bias": bias} if "bias" in read else {})}
    return make_model(nodes, inputs, outputs, weights)


def feed(model: onnx.ModelProto) -> dict[str, Array]:
    names = {entry.name: h.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type) for entry in model.graph.input}
    drawn: dict[str, Array] = {
        name: weight(*shape, seed=len(name)).astype(names[name]) for name, shape in INPUTS.items() if name in names
    }
    return {**drawn, **({"ids": np.array([[0, -1], [5, 2]])} if "ids" in names else {})}


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(STRAIGHT)), st.sampled_from(list(MIRRORED)), st.booleans())
def test_both_compute_the_same_at_full_rank_with_one_pair(straight: str, mirrored: str, fused: bool) -> None:
    model = tied(STRAIGHT[straight], MIRRORED[mirrored])
    outcome = compress(model)
    assert [(site.weight.name, site.mirrored) for site in sorted(outcome.sites, key=lambda one: one.output)] == [
        ("table", False),
        ("table", True),
    ]
    shapes = {name: values.shape for name, values in stored(outcome.model).items() if name.startswith("table")}
    assert shapes == {"table.left": (TOKENS, WIDTH), "table.right": (WIDTH, WIDTH)}
    assert_same(model, outcome.model, feed(model), tolerance=1e-5, run=lambda m, f: run_ort(m, f, optimized=fused))


@pytest.mark.parametrize("mirrored", MIRRORED)
def test_without_a_lookup_the_first_reader_says_how_the_pair_lies(mirrored: str) -> None:
    nodes = [*MIRRORED[mirrored], node("MatMul", "wide table", "a")]
    model = tied([], nodes)
    outcome = compress(model)
    first = min(outcome.sites, key=lambda site: site.node_index)
    assert not first.mirrored
    assert first.shape == first.own.shape
    assert stored(outcome.model)["table.left"].shape == (first.shape.in_features, WIDTH)
    assert_same(model, outcome.model, feed(model), tolerance=1e-5)


def test_what_truncation_leaves_out_is_the_same_at_both_ends() -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["MatMul"])
    outcome = compress(model, rank_of=lambda site: 2)
    fed: dict[str, Array] = {
        "ids": np.arange(4).reshape(2, 2),
        "deep": np.eye(WIDTH, dtype=np.float32).reshape(2, 3, WIDTH),
    }
    rows, logits = run_ort(outcome.model, fed)
    table = weight(TOKENS, WIDTH)
    found = logits.reshape(WIDTH, TOKENS).T
    np.testing.assert_allclose(rows.reshape(4, WIDTH), found[:4], atol=1e-5)
    tail = np.linalg.svd(table, compute_uv=False)[2:]
    assert np.linalg.norm(found - table) == pytest.approx(np.linalg.norm(tail), rel=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("float64", 1e-12)])
def test_other_dtypes(dtype: str, tolerance: float) -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["MatMul"], dtype)
    outcome = compress(model)
    pair = {name: values.astype(np.float64) for name, values in stored(outcome.model).items()}
    wide = stored(model)["table"].astype(np.float64)
    assert np.linalg.norm(pair["table.left"] @ pair["table.right"] - wide) < tolerance * np.linalg.norm(wide)
    run = run_reference if dtype == "bfloat16" else run_ort
    assert_same(model, outcome.model, feed(model), tolerance=tolerance, run=run)


def test_the_pair_is_all_that_is_left_of_the_table() -> None:
    """Transposes are nodes, not copies; a Gemm needs none for the large factor."""
    for mirrored, operators in {
        "MatMul": ["Gather", "MatMul", "Transpose", "Transpose", "MatMul", "MatMul"],
        "Gemm": ["Gather", "MatMul", "Transpose", "MatMul", "Gemm"],
    }.items():
        model = tied(STRAIGHT["lookup"], MIRRORED[mirrored])
        outcome = compress(model, rank_of=lambda site: 2)
        assert [one.op_type for one in outcome.model.graph.node] == operators
        assert sum(values.size for values in stored(outcome.model).values()) == 2 * (TOKENS + WIDTH)
        assert len(outcome.result.new_tensors) == 2
        assert {one.name for one in outcome.model.graph.node[-1:]} == {"y"}


def test_names_that_are_taken() -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["MatMul"])
    for taken in ("table.left", "table.right.transposed", "a.left"):
        model.graph.node.append(node("Relu", "deep", taken))
    outcome = compress(model)
    assert {"table.left_1", "table.right"} == stored(outcome.model).keys()
    assert_same(model, outcome.model, feed(model), tolerance=1e-5)


def test_readers_that_nothing_depends_on_are_readers() -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["MatMul"])
    model.graph.node.append(node("Gemm", "flat table", "dead", transB=1))
    model.graph.input.append(value("flat", [2, WIDTH]))
    outcome = compress(model)
    assert len(outcome.sites) == 3
    assert_same(model, outcome.model, {**feed(model), "flat": weight(2, WIDTH)}, tolerance=1e-5)


def test_scaled_integers_are_decoded_for_both() -> None:
    decode = [node("Cast", "q", "cast", to=T.FLOAT), node("Mul", "cast scale", "table")]
    nodes = [*decode, *STRAIGHT["lookup"], *MIRRORED["MatMul"]]
    inputs = [value("ids", [2, 2], T.INT64), value("deep", [2, 3, WIDTH])]
    integers = np.random.default_rng(0).integers(-9, 9, (TOKENS, WIDTH)).astype(np.int8)
    weights: dict[str, Array] = {"q": integers, "scale": np.array(0.5, np.float32)}
    model = make_model(nodes, inputs, [value("a", [2, 2, WIDTH]), value("y", [2, 3, TOKENS])], weights)
    outcome = compress(model)
    encodings = {site.weight.encoding for site in outcome.sites}
    assert len(encodings) == 1
    assert {one.description for one in encodings if one} == {"int8 behind Cast -> Mul"}
    assert stored(outcome.model).keys() == {"q.left", "q.right"}
    assert_same(model, outcome.model, feed(model), tolerance=1e-5)


def test_a_head_in_a_subgraph() -> None:
    def branch(name: str, scale: float) -> onnx.GraphProto:
        nodes = [
            h.make_node("Transpose", ["table"], [f"{name}.t"], perm=[1, 0]),
            h.make_node("MatMul", ["deep", f"{name}.t"], [f"{name}.m"], name=f"{name}.head"),
            constant(f"{name}.s", np.array(scale, np.float32)),
            h.make_node("Mul", [f"{name}.m", f"{name}.s"], [f"{name}.y"]),
        ]
        return h.make_graph(nodes, name, [], [value(f"{name}.y", [2, 3, TOKENS])])

    choose = h.make_node("If", ["c"], ["y"], then_branch=branch("then", 1.0), else_branch=branch("else", 2.0))
    inputs = [value("c", [], T.BOOL), value("ids", [2, 2], T.INT64), value("deep", [2, 3, WIDTH])]
    outputs = [value("a", [2, 2, WIDTH]), value("y", [2, 3, TOKENS])]
    model = make_model([*STRAIGHT["lookup"], choose], inputs, outputs, {"table": weight(TOKENS, WIDTH)})
    outcome = compress(model)
    assert [site.mirrored for site in outcome.sites] == [False, True, True]
    assert stored(outcome.model).keys() == {"table.left", "table.right"}
    for condition in (True, False):
        fed = {**feed(model), "c": np.array(condition)}
        assert_same(model, outcome.model, fed, tolerance=1e-5)
        assert_same(model, outcome.model, fed, tolerance=1e-5, run=lambda m, f: run_ort(m, f, optimized=True))


def reasons(*nodes: onnx.NodeProto, table: Array | None = None, **graph: Any) -> dict[str, str]:
    inputs = [value("ids", [2, 2], T.INT64), *(value(name, shape) for name, shape in INPUTS.items())]
    read = {name for one in nodes for name in one.input}
    kept = [entry for entry in inputs if entry.name in read]
    outputs = [value(name) for one in nodes for name in one.output if name in ("a", "y", "z", "table")]
    held = {"table": weight(TOKENS, WIDTH) if table is None else table}
    return reasons_of(make_model(list(nodes), kept, outputs, held, **graph))


def test_a_reader_that_is_not_supported_leaves_all_as_they_are() -> None:
    found = reasons(*STRAIGHT["lookup"], *MIRRORED["MatMul"], node("ReduceSum", "table", "z"))
    expected = "weight 'table' is also used by 'z' (ReduceSum), which is not rewritten"
    assert (found["a"], found["y"]) == (expected, expected)


def test_a_lookup_along_the_other_axis_leaves_all_as_they_are() -> None:
    found = reasons(*STRAIGHT["lookup"], *MIRRORED["Gemm"], node("Gather", "table ids", "z", axis=1))
    expected = "weight 'table' is also used by 'z' (Gather), which is not rewritten"
    assert (found["a"], found["y"]) == (expected, expected)


def test_rows_that_are_cut_elsewhere_are_another_matrix() -> None:
    shape = constant("shape", np.array([WIDTH, TOKENS]))
    found = reasons(*STRAIGHT["lookup"], shape, node("Reshape", "table shape", "b"), node("MatMul", "x b", "y"))
    assert set(found.values()) == {
        "weight 'table' is shared by 'a' and 'y' under different layouts",
        "weight 'table' is shared by 'y' and 'a' under different layouts",
    }


def test_values_that_are_scaled_for_one_reader_are_another_matrix() -> None:
    half = constant("half", np.array(0.5, np.float32))
    found = reasons(*STRAIGHT["lookup"], half, node("Mul", "table half", "b"), node("Gemm", "x b", "y", transB=1))
    assert set(found.values()) == {
        "weight 'table' is shared by 'a' and 'y' under different layouts",
        "weight 'table' is shared by 'y' and 'a' under different layouts",
    }


def test_a_kernel_that_is_a_matrix_too_is_not_tied() -> None:
    shape = constant("shape", np.array([TOKENS, WIDTH, 1, 1]))
    conv = [shape, node("Reshape", "table shape", "kernel"), node("Conv", "image kernel", "y")]
    inputs = [value("ids", [2, 2], T.INT64), value("image", [1, WIDTH, 2, 2])]
    model = make_model([*STRAIGHT["lookup"], *conv], inputs, [value("a"), value("y")], {"table": weight(TOKENS, WIDTH)})
    assert set(reasons_of(model).values()) == {
        "weight 'table' is shared by 'a' and 'y' under different layouts",
        "weight 'table' is shared by 'y' and 'a' under different layouts",
    }


def test_a_table_that_can_be_given_at_run_time_stays() -> None:
    model = tied(STRAIGHT["MatMul"], MIRRORED["Gemm"])
    model.graph.input.append(value("table", [TOKENS, WIDTH]))
    found = reasons_of(model)
    assert all("can be overridden at run time" in reason for reason in found.values())
    sites, _ = find_sites(model, op_types=OP_TYPES, fix_overridable=True)
    assert [site.mirrored for site in sites] == [False, True]


def test_a_table_that_is_an_output_stays() -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["Gemm"])
    model.graph.output.append(value("table", [TOKENS, WIDTH]))
    assert set(reasons_of(model).values()) == {"weight 'table' is also a graph output"}


def test_no_transpose_where_a_function_has_its_name() -> None:
    model = tied(STRAIGHT["lookup"], MIRRORED["Gemm"])
    body = [h.make_node("Identity", ["a"], ["b"])]
    model.functions.append(h.make_function("", "Transpose", ["a"], ["b"], body, [h.make_opsetid("", 17)]))
    assert set(reasons_of(model).values()) == {"weight 'table' is shared by 'a' and 'y' under different layouts"}


def test_readers_in_one_layout_are_not_tied() -> None:
    nodes = [node("MatMul", "wide table", "a"), node("MatMul", "wide table", "y")]
    model = make_model(
        nodes,
        [value("wide", [3, TOKENS])],
        [value("a", [3, WIDTH]), value("y", [3, WIDTH])],
        {"table": weight(TOKENS, WIDTH)},
    )
    assert all(site.native is None and site.own is site for site in sites_of(model))
