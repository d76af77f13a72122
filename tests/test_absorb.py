"""Linear nodes that meet: equal outputs for random shapes and attributes, every reason to stay apart, the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx import Config, FixedRank, KeepBytes, KeepMacs, KeepParams, compress, inspect
from lowrank_onnx.absorb import Absorption, absorb_products, credited
from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.model_io import complete_proto, load_model
from lowrank_onnx.passes import find_sites
from lowrank_onnx.site_override import SiteOverride
from lowrank_onnx.types import Array
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import assert_same, constant, make_model, run_ort, value, weight

TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-13}
DATA_TYPE = {"float16": T.FLOAT16, "bfloat16": T.BFLOAT16, "float32": T.FLOAT, "float64": T.DOUBLE}


def absorb(model: onnx.ModelProto) -> Absorption:
    loaded = load_model(model)
    sites, _ = find_sites(loaded.skeleton, op_types=OP_TYPES)
    return absorb_products(loaded, {site.output for site in sites})


def absorbed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all products that it can have, which must be well formed and at least one."""
    found = absorb(model)
    assert found.absorbed
    new = complete_proto(found.model)
    onnx.checker.check_model(new, full_check=True)
    return new


def feed(*shape: int, dtype: str = "float32") -> dict[str, Array]:
    return {"x": weight(*shape, seed=9, dtype=dtype)}


def dense(
    op_types: tuple[str, str],
    sizes: tuple[int, int, int],
    batch: tuple[int, ...],
    biases: tuple[bool, bool] = (False, False),
    dtype: str = "float32",
    transposed: bool = False,
    stored: str = "initializer",
    **graph: Any,
) -> onnx.ModelProto:
    """Two dense layers without anything in between but a bias; a MatMul's bias is an Add."""
    scale = 1 / np.sqrt(sizes[1])
    weights = {f"w{i}": weight(*sizes[i : i + 2], seed=i, dtype=dtype) * np.asarray(scale, dtype) for i in (0, 1)}
    weights |= {f"b{i}": weight(sizes[i + 1], seed=5 + i, dtype=dtype) for i in (0, 1) if biases[i]}
    nodes = []
    name = "x"
    for i, op_type in enumerate(op_types):
        if op_type == "Gemm":
            attributes: dict[str, Any] = {"transB": 1} if transposed else {}
            if transposed:
                weights[f"w{i}"] = weights[f"w{i}"].T.copy()
            inputs = [name, f"w{i}", *([f"b{i}"] if biases[i] else [])]
            nodes.append(h.make_node("Gemm", inputs, [f"y{i}"], name=f"fc{i}", **attributes))
        else:
            made = f"p{i}" if biases[i] else f"y{i}"
            nodes.append(h.make_node("MatMul", [name, f"w{i}"], [made], name=f"fc{i}"))
            if biases[i]:
                nodes.append(h.make_node("Add", [f"b{i}", made], [f"y{i}"], name=f"add{i}"))
        name = f"y{i}"
    if stored == "constant":
        nodes = [*(constant(key, array) for key, array in weights.items()), *nodes]
        weights = {}
    kind = DATA_TYPE[dtype]
    shapes = ((*batch, sizes[0]), (*batch, sizes[2]))
    return make_model(
        nodes, [value("x", shapes[0], kind)], [value("y1", shapes[1], kind)], weights, **{"opset": 17, **graph}
    )


@settings(max_examples=40, deadline=None)
@given(
    op_types=st.tuples(*[st.sampled_from(["MatMul", "Gemm"])] * 2),
    ends=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    middle=st.integers(7, 12),
    batch=st.lists(st.integers(1, 3), max_size=2),
    biases=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    transposed=st.booleans(),
    stored=st.sampled_from(["initializer", "constant"]),
    optimized=st.booleans(),
)
def test_dense_layers(
    op_types: tuple[str, str],
    ends: tuple[int, int],
    middle: int,
    batch: list[int],
    biases: tuple[bool, bool],
    dtype: str,
    transposed: bool,
    stored: str,
    optimized: bool,
) -> None:
    shape = (3,) if "Gemm" in op_types else tuple(batch)
    sizes = (ends[0], middle, ends[1])
    model = dense(op_types, sizes, shape, biases, dtype, transposed, stored)
    new = absorbed(model)
    found, expected = (run_ort(one, feed(*shape, ends[0], dtype=dtype), optimized=optimized)[0] for one in (new, model))
    difference = np.linalg.norm((found - expected).astype(np.float64))
    assert difference <= TOLERANCE[dtype] * np.linalg.norm(expected.astype(np.float64))
    linear = [node for node in new.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(linear) == 1
    assert linear[0].name == "fc0+fc1"
    assert {entry.key: entry.value for entry in linear[0].metadata_props} == {"lowrank.absorbed": "fc0+fc1"}
    names = {tensor.name for tensor in new.graph.initializer} | {one for node in new.graph.node for one in node.output}
    assert not names & {"w0", "w1", "y0", "p0", "b0"}


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.tuples(st.integers(2, 3), st.integers(10, 12), st.integers(2, 3)),
    biases=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from(["float32", "float16"]),
    optimized=st.booleans(),
)
def test_convolutions(
    data: st.DataObject,
    kernel: list[int],
    channels: tuple[int, int, int],
    biases: tuple[bool, bool],
    dtype: str,
    optimized: bool,
) -> None:
    spatial = len(kernel)
    number = st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)
    attributes: dict[str, Any] = {"strides": data.draw(number), "dilations": data.draw(number)}
    attributes["pads"] = data.draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial))
    enters, middle, leaves = channels
    weights = {"w0": weight(middle, enters, *kernel, dtype=dtype), "w1": weight(leaves, middle, *[1] * spatial, seed=1)}
    weights["w1"] = weights["w1"].astype(dtype)
    weights |= {f"b{i}": weight(size, seed=7 + i, dtype=dtype) for i, size in enumerate((middle, leaves)) if biases[i]}
    nodes = [
        h.make_node("Conv", ["x", "w0", *(["b0"] if biases[0] else [])], ["h"], name="wide", **attributes),
        h.make_node("Conv", ["h", "w1", *(["b1"] if biases[1] else [])], ["y"], name="narrow"),
    ]
    shape, kind = (2, enters, *[7] * spatial), DATA_TYPE[dtype]
    model = make_model(nodes, [value("x", shape, kind)], [value("y", (None,) * len(shape), kind)], weights)
    new = absorbed(model)
    found, expected = (run_ort(one, feed(*shape, dtype=dtype), optimized=optimized)[0] for one in (new, model))
    difference = np.linalg.norm((found - expected).astype(np.float64))
    assert difference <= TOLERANCE[dtype] * np.linalg.norm(expected.astype(np.float64))
    (node,) = new.graph.node
    assert node.name == "wide+narrow"
    assert len(node.input) == 2 + any(biases)


def test_bfloat16_is_rounded_once() -> None:
    model = dense(("MatMul", "MatMul"), (4, 16, 4), (3,), (True, True), "bfloat16")
    new = absorbed(model)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in new.graph.initializer}
    old = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    np.testing.assert_allclose(held["w0.product"], old["w0"] @ old["w1"], rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(held["b0.product"], old["b0"] @ old["w1"], rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(held["b1"], old["b1"])


def test_three_in_a_row_become_one() -> None:
    weights = {f"w{i}": weight(*shape, seed=i) for i, shape in enumerate([(4, 20), (20, 30), (30, 4)])}
    nodes = [
        h.make_node("MatMul", [("x", "a", "b")[i], f"w{i}"], [("a", "b", "y")[i]], name=f"fc{i}") for i in range(3)
    ]
    model = make_model(nodes, [value("x", (2, 4))], [value("y", (2, 4))], weights)
    found = absorb(model)
    (record,) = found.absorbed
    assert (record.nodes, record.output) == ("fc0+fc1+fc2", "y")
    assert (record.parameters_before, record.parameters_after) == (4 * 20 + 20 * 30 + 30 * 4, 16)
    assert record.middle in ("a", "b")
    assert_same(model, complete_proto(found.model), feed(2, 4), tolerance=1e-5)


def test_an_old_model_lists_the_product_among_its_inputs() -> None:
    model = dense(("Gemm", "Gemm"), (4, 16, 4), (3,), (True, True), opset=9, ir_version=3)
    model.graph.input.extend(value(tensor.name, tensor.dims) for tensor in model.graph.initializer)
    new = absorbed(model)
    assert {one.name for one in new.graph.input} == {"x", "w0.product", "b0.product"}
    assert_same(model, new, feed(3, 4), tolerance=1e-5)


def two(
    *,
    weights: Mapping[str, Array] | None = None,
    nodes: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """Two MatMuls that become one, and what is in the way of it."""
    matmuls = [h.make_node("MatMul", ["x", "w0"], ["h"], name="a"), h.make_node("MatMul", ["h", "w1"], ["y"], name="b")]
    held = {"w0": weight(4, 16), "w1": weight(16, 4, seed=1), **(weights or {})}
    return make_model([*matmuls, *nodes], [value("x", (3, 4))], [value("y"), *outputs], held)


def convs(first: Mapping[str, Any], second: Mapping[str, Any], kernels: tuple[int, int] = (3, 1)) -> onnx.ModelProto:
    groups = first.get("group", 1), second.get("group", 1)
    weights = {
        "w0": weight(16, 4 // groups[0], kernels[0], kernels[0]),
        "w1": weight(4, 16 // groups[1], kernels[1], kernels[1]),
    }
    nodes = [
        h.make_node("Conv", ["x", "w0"], ["h"], name="a", **first),
        h.make_node("Conv", ["h", "w1"], ["y"], name="b", **second),
    ]
    return make_model(nodes, [value("x", (1, 4, 9, 9))], [value("y")], weights)


def gemms(second: Mapping[str, Any], bias: tuple[int, ...] = (16,)) -> onnx.ModelProto:
    weights = {"w0": weight(4, 16), "c": weight(*bias, seed=3), "w1": weight(16, 16, seed=1)[:, :5]}
    nodes = [
        h.make_node("Gemm", ["x", "w0", "c"], ["h"], name="a"),
        h.make_node("Gemm", ["h", "w1"], ["y"], name="b", **second),
    ]
    return make_model(nodes, [value("x", (16, 4))], [value("y")], weights)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (two(outputs=[value("h")]), "'h' between them is an output of the graph"),
        (
            two(nodes=[h.make_node("Relu", ["h"], ["z"])], outputs=[value("z")]),
            "'h' between them is read by other nodes too",
        ),
        (
            two(nodes=[h.make_node("Relu", ["w1"], ["z"])], outputs=[value("z")]),
            "the weight of 'b' has other uses",
        ),
        (two(weights={"w1": weight(2, 16, 4)}), "'b': weight of shape [2, 16, 4] is a batch of different matrices"),
        (two(weights={"w1": weight(1, 16, 4)}), "the weight of 'b' has shape [1, 16, 4], expected a matrix"),
        (
            two(weights={"w0": weight(4, 2), "w1": weight(2, 4)}),
            "their product wouldn't be smaller: it has 16 weights, the two together 16",
        ),
        (convs({}, {"group": 2}), "'b' has 2 groups"),
        (convs({"group": 2}, {}), "'a' has 2 groups"),
        (convs({}, {}, (1, 3)), "the kernel of 'b' has more than one element"),
        (convs({}, {"strides": [2, 2]}), "'b' has strides or pads"),
        (convs({}, {"pads": [0, 1, 0, 0]}), "'b' has strides or pads"),
        (gemms({"transA": 1}), "'b' transposes what is between them"),
        (gemms({"alpha": 0.5}), "'b' scales or broadcasts"),
        (gemms({}, (1, 16)), "the bias of 'a' isn't a stored vector of 16"),
        (gemms({}, (1,)), "the bias of 'a' isn't a stored vector of 16"),
        (two(weights={"w1": weight(12, 4)}), "'a' gives 16 features, 'b' takes 12"),
    ],
)
def test_reasons_to_stay_apart(model: onnx.ModelProto, expected: str) -> None:
    loaded = load_model(model)
    found = absorb_products(loaded, {"h", "y"})
    assert not found.absorbed
    assert found.model is loaded
    assert [apart.reason for apart in found.apart] == [expected]


def test_a_product_that_overflows_is_not_made() -> None:
    large = {"w0": np.full((4, 16), 300, np.float16), "w1": np.full((16, 4), 300, np.float16)}
    loaded = load_model(two(weights=large))
    found = absorb_products(loaded, {"h", "y"})
    assert found.model is loaded
    assert [apart.reason for apart in found.apart] == ["their product overflows"]


@pytest.mark.parametrize("broken", ["no output", "no weight", "nothing"])
def test_a_broken_node_is_in_no_product(broken: str) -> None:
    nodes = [h.make_node("MatMul", ["x", "w0"], ["m"], name="a"), h.make_node("MatMul", ["m", "w1"], ["y"], name="b")]
    if broken != "no weight":
        del nodes[1].output[:]
    if broken != "no output":
        del nodes[1].input[0 if broken == "nothing" else 1 :]
    weights = {"w0": weight(8, 4), "w1": weight(4, 8)}
    model = make_model(nodes, [value("x", ["n", 8])], [value("y", ["n", 8])], weights)
    absorption = absorb_products(load_model(model), ("m", "y"))
    assert absorption.absorbed == ()


def test_only_what_may_be_touched_is() -> None:
    loaded = load_model(two())
    assert absorb_products(loaded, {"h", "y"}).absorbed
    assert absorb_products(loaded, {"h"}).model is absorb_products(loaded, {"y"}).model is loaded


def chain(*sizes: int, rank: int | None = None) -> onnx.ModelProto:
    """A MatMul, a Relu, and two MatMuls with nothing in between; the last of `rank`."""
    weights = {f"w{i}": weight(*sizes[i : i + 2], seed=i) / np.float32(np.sqrt(sizes[i])) for i in range(3)}
    if rank is not None:
        weights["w2"] = weight(sizes[2], rank, seed=8) @ weight(rank, sizes[3], seed=9)
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["a"], name="fc0"),
        h.make_node("Relu", ["a"], ["r"]),
        h.make_node("MatMul", ["r", "w1"], ["b"], name="fc1"),
        h.make_node("MatMul", ["b", "w2"], ["y"], name="fc2"),
    ]
    return make_model(nodes, [value("x", ("n", sizes[0]))], [value("y", ("n", sizes[3]))], weights)


SIZE = Config(budget=FixedRank(4), objective="size")


def feeds(features: int) -> list[dict[str, Array]]:
    return [feed(16, features)]


def test_a_compression_factorizes_the_product_and_counts_from_the_original() -> None:
    model = chain(32, 32, 64, 32)
    result = compress(model, SIZE, feeds=feeds(32))
    assert result.status == "written", result.message
    assert [(site.name, site.parameters_before, site.parameters_after) for site in result.sites] == [
        ("fc0", 1024, 256),
        ("fc1+fc2", 4096, 256),
    ]
    assert result.before.parameters == result.before.site_parameters == 1024 + 4096
    assert result.before.macs == 16 * result.before.site_parameters
    assert result.after is not None
    assert result.after.parameters == result.after.site_parameters == 512
    assert result.notes[0] == (
        "'fc1+fc2' met with nothing in between and became one node: 4096 weights are 1024, which took no rank"
    )


def test_a_model_of_which_nothing_else_can_shrink_is_written_with_the_product(tmp_path: Path) -> None:
    model = chain(32, 32, 64, 32)
    result = compress(model, Config(budget=KeepParams(1.0), objective="size"), feeds=feeds(32), output=tmp_path / "m")
    assert (result.status, [site.form for site in result.sites]) == ("written", ["dense", "dense"])
    assert_same(model, onnx.load(tmp_path / "m"), feed(16, 32), tolerance=1e-5)


def test_inspect_tells_what_would_become_one() -> None:
    result = inspect(chain(32, 32, 64, 32))
    assert [site.name for site in result.sites] == ["fc0", "fc1", "fc2"]
    assert result.notes[-1] == (
        "'fc1+fc2' meet with nothing in between: compress makes one node of them, 4096 weights are 1024 then"
    )


def test_what_is_asked_of_one_of_two_weights_keeps_them_apart() -> None:
    config = Config(budget=FixedRank(4), objective="size", overrides=(SiteOverride(match="fc2", rank=8),))
    result = compress(chain(32, 32, 64, 32), config)
    assert [(site.name, site.rank) for site in result.sites] == [("fc0", 4), ("fc1", 4), ("fc2", 8)]


def test_left_out_nodes_stay_as_they_are() -> None:
    result = compress(chain(32, 32, 64, 32), Config(budget=FixedRank(4), objective="size", exclude=("fc2",)))
    assert [site.name for site in result.sites] == ["fc0", "fc1"]
    assert result.model is not None
    assert "w2" in {tensor.name for tensor in result.model.graph.initializer}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_factors_are_multiplied_into_what_they_meet(dtype: str) -> None:
    """The dense product would be larger than the two weights, the product of the inner factors isn't."""
    model = dense(("MatMul", "MatMul"), (48, 24, 48), (), dtype=dtype)
    model.graph.input[0].CopyFrom(value("x", (16, 48), DATA_TYPE[dtype]))
    model.graph.output[0].CopyFrom(value("y1", (16, 48), DATA_TYPE[dtype]))
    config = Config(budget=FixedRank(6), objective="size", validate=False)
    result = compress(model, config, feeds=[feed(16, 48, dtype=dtype)])
    assert result.model is not None
    assert result.after is not None
    shapes = [tuple(tensor.dims) for tensor in result.model.graph.initializer]
    assert shapes == [(6, 48), (48, 6)]
    assert result.after.parameters == result.after.site_parameters == 2 * 6 * 48
    assert result.after.macs == 16 * 2 * 6 * 48
    assert result.notes[0].startswith("'fc0.left+fc0+fc1.left' met with nothing in between")


def test_truncated_factors_keep_their_error() -> None:
    """Absorbing adds nothing to the truncation of the first weight, as the second passes it on."""
    model = dense(("MatMul", "MatMul"), (48, 24, 48), (16,))
    config = Config(budget=FixedRank(6), objective="size", validate=False, include=("fc0",), whiten=False)
    result = compress(model, config)
    assert result.model is not None
    first, second = (weight(*sizes, seed=i) / np.sqrt(24) for i, sizes in enumerate([(48, 24), (24, 48)]))
    u, s, vt = np.linalg.svd(first.astype(np.float64))
    truncated = (u[:, :6] * s[:6]) @ vt[:6]
    x = feed(16, 48)["x"]
    (found,) = run_ort(result.model, {"x": x})
    np.testing.assert_allclose(found, x @ truncated @ second, rtol=1e-3, atol=1e-3)
    missed = np.linalg.norm(found - x @ first @ second)
    assert missed <= np.linalg.norm(x, 2) * s[6] * np.linalg.norm(second) * (1 + 1e-3)


def test_a_table_that_is_looked_up_has_no_share_in_a_budget_of_macs() -> None:
    model = chain(32, 32, 64, 32)
    model.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(weight(100, 32, seed=9), "table"))
    model.graph.input.append(value("ids", ("n",), T.INT64))
    model.graph.node.append(h.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"))
    model.graph.output.append(value("rows", ("n", 32)))
    found = absorb(model)
    sites, _ = find_sites(found.model.skeleton, op_types=OP_TYPES)
    groups = group_by_weight(sites)
    assert "lookup" in {site.name for site in sites}
    saved = {one.output: one.saved for one in found.absorbed}
    positions = {site.name: 10 for site in sites}
    products, table = 1024 + 1024, 3200
    for kind, rest in ((KeepMacs, 0), (KeepParams, table)):
        found_budget = credited(kind(0.3), groups, saved, positions)
        assert found_budget == kind(0.3 * (products + 3072 + rest) / (products + rest))


def test_a_budget_is_over_the_model_as_it_came() -> None:
    found = absorb(chain(32, 32, 64, 32))
    sites, _ = find_sites(found.model.skeleton, op_types=OP_TYPES)
    groups = group_by_weight(sites)
    saved = {one.output: one.saved for one in found.absorbed}
    positions = {site.name: 10 for site in sites}
    expected = 0.3 * (1024 + 4096) / (1024 + 1024)
    for kind in (KeepParams, KeepBytes, KeepMacs):
        assert credited(kind(0.3), groups, saved, positions) == kind(expected)
        assert credited(kind(0.9), groups, saved, positions) == kind(1.0)
        assert credited(kind(0.3), groups, {}, positions) == kind(0.3)
    assert credited(FixedRank(3), groups, saved, positions) == FixedRank(3)


@pytest.mark.parametrize("share", [0.3, 0.15])
def test_a_share_is_reached_as_asked(share: float) -> None:
    config = Config(budget=KeepParams(share), objective="size", validate=False, forms=("pair",))
    result = compress(chain(32, 32, 64, 32), config)
    (reached,) = result.reached
    assert (reached.asked, reached.reached) == (share, reached.predicted)
    assert 0.7 * share <= reached.reached <= share
