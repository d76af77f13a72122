from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as h

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.forms import PAIR
from lowrank_onnx.latency.site_model import (
    SiteModel,
    at_rank,
    build_bundle_model,
    build_site_model,
    draw_input,
    with_values,
)
from lowrank_onnx.passes import find_sites, offer_forms
from lowrank_onnx.types import Array, Site, numpy_dtype
from tests.passes.models import constant, make_model, run_ort, strip, tensor, value, weight


def one_node(
    op_type: str,
    weights: dict[str, Array],
    operands: Sequence[str],
    *,
    opset: int = 17,
    data_type: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    node = h.make_node(op_type, operands, ["out"], name="layer", **attributes)
    return make_model([node], [value("in", None, data_type)], [value("out", None, data_type)], weights, opset=opset)


def model_of(model: onnx.ModelProto, input_shape: tuple[int, ...]) -> SiteModel:
    skeleton, _ = strip(model)
    (site,), _ = find_sites(skeleton, op_types=OP_TYPES)
    return build_site_model(skeleton, site, input_shape)


W34 = {"w": weight(24, 20)}
CASES: dict[str, tuple[onnx.ModelProto, tuple[int, ...], tuple[int, ...]]] = {
    "matmul batched": (one_node("MatMul", W34, ["in", "w"]), (2, 3, 5, 24), (2, 3, 5, 20)),
    "matmul, weight on the left": (one_node("MatMul", W34, ["w", "in"]), (2, 20, 7), (2, 24, 7)),
    "gemm": (
        one_node("Gemm", {"w": weight(20, 24), "b": weight(20)}, ["in", "w", "b"], transB=1, alpha=0.5),
        (5, 24),
        (5, 20),
    ),
    "gemm, transposed input, weight first": (
        one_node("Gemm", {"w": weight(24, 20), "b": weight(20, 1)}, ["w", "in", "b"], transA=1, transB=1),
        (5, 24),
        (20, 5),
    ),
    "conv": (
        one_node(
            "Conv",
            {"w": weight(12, 4, 3, 3), "b": weight(12)},
            ["in", "w", "b"],
            strides=[2, 1],
            pads=[1, 0, 1, 2],
            group=2,
        ),
        (2, 8, 9, 10),
        (2, 12, 5, 10),
    ),
    "conv 1-D, dilated": (
        one_node("Conv", {"w": weight(12, 8, 3)}, ["in", "w"], dilations=[2]),
        (1, 8, 20),
        (1, 12, 16),
    ),
    "conv transpose": (
        one_node(
            "ConvTranspose",
            {"w": weight(8, 6, 3, 3), "b": weight(12)},
            ["in", "w", "b"],
            strides=[2, 2],
            group=2,
            output_padding=[1, 0],
        ),
        (1, 8, 5, 6),
        (1, 12, 12, 13),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_node_runs_alone_as_it_does_in_its_model(name: str) -> None:
    model, input_shape, output_shape = CASES[name]
    alone = model_of(model, input_shape)
    complete = onnx.load_from_string(with_values(alone.proto))
    (found,) = run_ort(complete, draw_input(alone))
    # The original, with the values that the lone node was given, computes the same.
    given = {t.name: numpy_helper.to_array(t) for t in complete.graph.initializer}
    for stored, new in zip(model.graph.initializer, ("weight", "bias"), strict=False):
        stored.CopyFrom(tensor(stored.name, given[new]))
    (expected,) = run_ort(model, {"in": draw_input(alone)["x"]})
    assert found.shape == output_shape
    np.testing.assert_array_equal(found, expected)
    assert np.linalg.norm(found) > 0.0


@pytest.mark.parametrize("name", CASES)
def test_at_a_rank_it_is_what_the_pass_writes(name: str) -> None:
    model, input_shape, output_shape = CASES[name]
    alone = model_of(model, input_shape)
    rewritten = onnx.load_from_string(with_values(at_rank(alone, alone.site.forms[0], 3)))
    assert len(rewritten.graph.node) == 2
    site = alone.site.shape
    sizes = [numpy_helper.to_array(t).size for t in rewritten.graph.initializer if t.name != "bias"]
    assert sorted(sizes) == sorted([site.groups * 3 * site.in_features, site.groups * 3 * site.out_features])
    (found,) = run_ort(rewritten, draw_input(alone))
    assert found.shape == output_shape
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_of_a_weight_is_kept(dtype: str) -> None:
    data_type = h.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    alone = model_of(one_node("MatMul", {"w": weight(24, 20, dtype=dtype)}, ["in", "w"], data_type=data_type), (5, 24))
    complete = onnx.load_from_string(with_values(alone.proto))
    stored = numpy_helper.to_array(complete.graph.initializer[0])
    assert stored.dtype == numpy_dtype(dtype)
    assert stored.shape == (24, 20)
    assert draw_input(alone)["x"].dtype == numpy_dtype(dtype)
    assert complete.graph.input[0].type.tensor_type.elem_type == data_type


def test_values_are_the_same_each_time_and_not_all_alike() -> None:
    alone = model_of(one_node("MatMul", {"w": weight(300, 300)}, ["in", "w"]), (5, 300))
    assert with_values(alone.proto) == with_values(alone.proto)
    stored = numpy_helper.to_array(onnx.load_from_string(with_values(alone.proto)).graph.initializer[0])
    assert len(np.unique(stored, axis=0)) == 300  # 90,000 values, more than are drawn: no row is another's copy
    np.testing.assert_array_equal(draw_input(alone)["x"], draw_input(alone)["x"])


def test_a_large_product_stays_finite_in_float16() -> None:
    model = one_node("MatMul", {"w": weight(2048, 64, dtype="float16")}, ["in", "w"], data_type=TensorProto.FLOAT16)
    alone = model_of(model, (4, 2048))
    (found,) = run_ort(onnx.load_from_string(with_values(at_rank(alone, alone.site.forms[0], 48))), draw_input(alone))
    assert np.isfinite(found).all()


def test_the_model_isn_t_changed() -> None:
    model = CASES["conv"][0]
    skeleton, _ = strip(model)
    before = skeleton.SerializeToString(deterministic=True)
    (site,), _ = find_sites(skeleton, op_types=OP_TYPES)
    at_rank(build_site_model(skeleton, site, CASES["conv"][1]), site.forms[0], 2)
    assert skeleton.SerializeToString(deterministic=True) == before


def key_of(
    op_type: str, weights: dict[str, Array], operands: Sequence[str], shape: tuple[int, ...], **more: Any
) -> bytes:
    return model_of(one_node(op_type, weights, operands, **more), shape).key()


def test_names_and_the_order_of_attributes_don_t_count() -> None:
    kernel = {"w": weight(12, 8, 3)}
    first = h.make_node("Conv", ["in", "w"], ["out"], strides=[2], pads=[1, 1])
    second = h.make_node("Conv", ["in", "w"], ["other"], name="n", doc_string="text", pads=[1, 1], strides=[2])
    second.attribute[0].doc_string = "text"
    second.metadata_props.add(key="a", value="b")
    keys = set()
    for node in (first, second):
        output = value(node.output[0])
        keys.add(model_of(make_model([node], [value("in")], [output], kernel, ir_version=10), (1, 8, 9)).key())
    assert len(keys) == 1


def test_weight_values_don_t_count() -> None:
    first, second = ({"w": weight(24, 20, seed=seed)} for seed in (1, 2))
    assert key_of("MatMul", first, ["in", "w"], (5, 24)) == key_of("MatMul", second, ["in", "w"], (5, 24))


def test_everything_that_changes_the_work_makes_another_key() -> None:
    square, bias = {"w": weight(20, 20)}, {"b": weight(20)}
    kernel = {"w": weight(12, 8, 3, 3)}
    shape = (1, 8, 9, 9)
    keys = [
        key_of("MatMul", square, ["in", "w"], (5, 20)),
        key_of("MatMul", square, ["in", "w"], (6, 20)),
        key_of("MatMul", square, ["in", "w"], (1, 5, 20)),
        key_of("MatMul", square, ["w", "in"], (20, 5)),
        key_of("MatMul", square, ["in", "w"], (5, 20), opset=12),
        key_of("MatMul", {"w": weight(20, 16)}, ["in", "w"], (5, 20)),
        key_of("MatMul", {"w": weight(20, 20, dtype="float64")}, ["in", "w"], (5, 20), data_type=TensorProto.DOUBLE),
        key_of("Gemm", square, ["in", "w"], (5, 20)),
        key_of("Gemm", square, ["in", "w"], (5, 20), transB=1),
        key_of("Gemm", {**square, **bias}, ["in", "w", "b"], (5, 20)),
        key_of("Gemm", {**square, "b": weight(5, 20)}, ["in", "w", "b"], (5, 20)),
        key_of("Conv", kernel, ["in", "w"], shape),
        key_of("Conv", kernel, ["in", "w"], shape, strides=[2, 2]),
        key_of("Conv", kernel, ["in", "w"], shape, auto_pad="SAME_UPPER"),
        key_of("Conv", {**kernel, "b": weight(12)}, ["in", "w", "b"], shape),
    ]
    assert len(set(keys)) == len(keys)


def gemm_bias(bias: onnx.NodeProto | Array | None, operands: Sequence[str], shape: tuple[int, ...]) -> list[int]:
    """The shape that the third input of a Gemm has when it runs alone; None is a bias computed at run time."""
    nodes = [h.make_node("Gemm", operands, ["out"])]
    weights = {"w": weight(20, 20)}
    if isinstance(bias, onnx.NodeProto):
        nodes.insert(0, bias)
    elif bias is not None:
        weights["b"] = bias
    else:
        nodes.insert(0, h.make_node("Relu", ["in"], ["b"]))
    model = make_model(nodes, [value("in", shape)], [value("out")], weights)
    return list(model_of(model, shape).proto.graph.initializer[1].dims)


def test_the_bias_of_a_gemm_has_the_shape_that_is_stored() -> None:
    assert gemm_bias(weight(5, 1), ["in", "w", "b"], (5, 20)) == [5, 1]
    assert gemm_bias(constant("b", weight(1, 20)), ["in", "w", "b"], (5, 20)) == [1, 20]
    assert gemm_bias(np.array(2.0, np.float32), ["in", "w", "b"], (5, 20)) == []


def test_a_bias_that_isn_t_stored_is_taken_for_a_vector_of_the_outputs() -> None:
    assert gemm_bias(None, ["in", "w", "b"], (20, 20)) == [20]
    assert gemm_bias(None, ["w", "in", "b"], (20, 20)) == [20, 1]


def test_an_absent_third_input_is_no_bias() -> None:
    alone = model_of(one_node("Conv", {"w": weight(12, 8, 3)}, ["in", "w", ""]), (1, 8, 9))
    assert list(alone.proto.graph.node[0].input) == ["x", "weight"]
    assert len(alone.proto.graph.initializer) == 1


def branches(*, inner_bias: bool) -> onnx.ModelProto:
    """An If whose branches hold a Gemm; the weights, and in one case the bias, are stored outside."""
    then = h.make_graph(
        [h.make_node("Gemm", ["in", "w", "b"], ["yes"], name="inner", transB=1)],
        "then",
        [],
        [value("yes")],
        [tensor("b", weight(20))] if inner_bias else [],
    )
    other = h.make_graph([h.make_node("MatMul", ["in", "v"], ["no"], name="other")], "else", [], [value("no")])
    node = h.make_node("If", ["which"], ["out"], name="if", then_branch=then, else_branch=other)
    weights = {"w": weight(20, 24), "v": weight(24, 20), "b": weight(1, 20)}
    return make_model([node], [value("which", [], TensorProto.BOOL), value("in", [5, 24])], [value("out")], weights)


@pytest.mark.parametrize(("inner_bias", "dims"), [(True, [20]), (False, [1, 20])])
def test_sites_in_subgraphs_are_found_by_their_scope(inner_bias: bool, dims: list[int]) -> None:
    skeleton, _ = strip(branches(inner_bias=inner_bias))
    sites, _ = find_sites(skeleton, op_types=OP_TYPES)
    models = {site.op_type: build_site_model(skeleton, site, (5, 24)) for site in sites}
    assert {site.scope for site in sites} == {((0, "then_branch"),), ((0, "else_branch"),)}
    assert list(models["Gemm"].proto.graph.initializer[1].dims) == dims
    for alone in models.values():
        (found,) = run_ort(
            onnx.load_from_string(with_values(at_rank(alone, alone.site.forms[0], 4))), draw_input(alone)
        )
        assert found.shape == (5, 20)


def matmul_site(model: onnx.ModelProto) -> Site:
    (site,), _ = find_sites(model, op_types=OP_TYPES)
    return site


def test_a_site_of_another_model_is_refused() -> None:
    site = matmul_site(CASES["matmul batched"][0])
    others = [CASES["conv"][0], make_model([], [], []), one_node("MatMul", {"w": weight(24, 20)}, ["other", "w"])]
    for other in others:
        with pytest.raises(ValueError, match="site 'layer' isn't in this model"):
            build_site_model(other, site, (5, 24))
    with pytest.raises(ValueError, match="isn't in this model"):
        build_site_model(CASES["conv"][0], find_inner(), (5, 24))


def find_inner() -> Site:
    return find_sites(branches(inner_bias=True), op_types=OP_TYPES)[0][0]


def test_a_negative_size_is_refused() -> None:
    model = CASES["matmul batched"][0]
    with pytest.raises(ValueError, match=r"input shape \[-1, 24\], expected sizes of at least 0"):
        build_site_model(model, matmul_site(model), (-1, 24))


def test_a_rank_beyond_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 21, expected 1 to 20"):
        at_rank(model_of(CASES["matmul batched"][0], (5, 24)), PAIR, 21)


def test_sites_that_read_one_tensor_are_one_model() -> None:
    model = make_model(
        [h.make_node("MatMul", ["in", f"w{i}"], [f"y{i}"], name=f"fc{i}") for i in range(3)],
        [value("in", [5, 24])],
        [value(f"y{i}", [5, 8 + i]) for i in range(3)],
        {f"w{i}": weight(24, 8 + i, seed=i) for i in range(3)},
    )
    skeleton, _ = strip(model)
    sites, _ = offer_forms(find_sites(skeleton, op_types=OP_TYPES)[0], ("shared",))
    alone = build_bundle_model(skeleton, sites, (5, 24))
    assert [y.shape for y in run_ort(onnx.load_from_string(with_values(alone.proto)), draw_input(alone))] == [
        (5, 8),
        (5, 9),
        (5, 10),
    ]
    shared = at_rank(alone, sites[0].forms[0], 4)
    assert [node.op_type for node in shared.graph.node] == ["MatMul"] * 4
    found = run_ort(onnx.load_from_string(with_values(shared)), draw_input(alone))
    assert [y.shape for y in found] == [(5, 8), (5, 9), (5, 10)]
    assert [choice.form.parameters(choice.site.shape, 4) for choice in alone.choices(sites[0].forms[0], 4)] == [
        4 * (24 + 8),
        4 * 9,
        4 * 10,
    ]
