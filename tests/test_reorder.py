"""Outputs in another order: the same results for random graphs, every reason against it, float16, the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx import Config, FixedRank, KeepParams, compress
from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.candidates import Candidate, dense_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.forms import Pivoted
from lowrank_onnx.linalg.pivoted import pivot_factors, pivot_order
from lowrank_onnx.model_io import complete_proto, load_model
from lowrank_onnx.passes import find_followers, find_sites
from lowrank_onnx.preparation import planned_weights, prepare
from lowrank_onnx.reorder import OutputOrders
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, numpy_dtype, rearrange
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import constant, factor, make_model, run_ort, value, weight

TOLERANCE = {"float16": 3e-2, "float32": 1e-4, "float64": 1e-6}
"""onnxruntime moves a scalar factor into an attribute of a product, which is float32."""
WORST_PIVOTS = 30.0
"""Condition from which on rounding in float16 counts: the program takes an order by its measured error alone."""
KIND = {"float16": T.FLOAT16, "float32": T.FLOAT, "float64": T.DOUBLE}


def of_rank(rank: int, rows: int, columns: int, seed: int, dtype: str) -> Array:
    left, right = weight(rows, rank, seed=seed), weight(rank, columns, seed=seed + 1)
    product = left.astype(np.float64) @ right.astype(np.float64) / np.sqrt(rank * rows)
    return np.asarray(product.astype(numpy_dtype(dtype)))


def reordered(model: onnx.ModelProto, ranks: Mapping[str, int], orders: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The model with some weights, by name, at a rank: pivoted in an order where that is given, else as a pair."""
    prepared = prepare(model, Config(budget=FixedRank(1), forms=("pair", "conv_channel", "pivoted")), None)
    reader = WeightReader(prepared.model, [group.weight for group in prepared.groups])
    with TemporaryDirectory() as directory:
        spool = FactorSpool(Path(directory))
        choices = []
        for group, planned in zip(prepared.groups, planned_weights(prepared, None, {}), strict=True):
            rank = ranks.get(group.weight.name)
            if rank is None:
                choices.append(Choice(dense_candidate(planned), "left"))
                continue
            matrices = rearrange(reader.read(group.weight), group.sites[0].to_matrices)
            left, right = factor(matrices, rank)
            wide = np.float64 if group.weight.dtype == "float64" else np.float32
            if group.weight.name in orders:
                form = Pivoted(0, tuple(orders[group.weight.name]))
                if currently_in_test_context():
                    assume(np.linalg.cond(form.ordered(right[0])[:, :rank]) < WORST_PIVOTS)
                found = pivot_factors(left[0], form.ordered(right[0]), 0)
                assert found is not None
                parts = {"left": found.left[None], "after": found.after[None]}
                parts = {part: array.astype(wide) for part, array in parts.items() if array.shape[-1]}
                spool.put(group.weight, form, rank, parts, "svd")
                choices.append(Choice(Candidate("pivoted", rank, 0, None, 0.0)))
            else:
                parts = {"left": left.astype(wide), "right": right.astype(wide)}
                spool.put(group.weight, group.forms[0], rank, parts, "svd")
                choices.append(Choice(Candidate(group.forms[0].name, rank, 0, None, 0.0)))
        candidate = build_candidate(prepared.model, prepared.groups, choices, spool, measure=True)
        assert all(choice.relative_error < 2e-2 for choice in candidate.written)
        new = complete_proto(candidate.model)
    onnx.checker.check_model(new, full_check=True)
    return new


def assert_equal(old: onnx.ModelProto, new: onnx.ModelProto, x: Array, optimized: bool = False) -> None:
    (expected,) = run_ort(old, {"x": x}, optimized=optimized)
    (found,) = run_ort(new, {"x": x}, optimized=optimized)
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    assert difference <= TOLERANCE[x.dtype.name] * np.linalg.norm(expected.astype(np.float64))


STEPS = ("Relu", "Tanh", "bias", "scale", "scalar", "silu", "row", "prelu", "clip")


def steps(drawn: Sequence[str], name: str, size: int, dtype: str) -> tuple[list[onnx.NodeProto], dict[str, Array], str]:
    """Nodes that treat all features alike, one after the other."""
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Array] = {}
    for number, step in enumerate(drawn):
        made, one = f"s{number}", f"c{number}"
        values = weight(size, seed=20 + number, dtype=dtype)
        if step in ("Relu", "Tanh"):
            nodes.append(h.make_node(step, [name], [made]))
        elif step == "silu":
            nodes += [h.make_node("Sigmoid", [name], [f"{made}g"]), h.make_node("Mul", [f"{made}g", name], [made])]
        elif step == "clip":
            held |= {f"{one}a": np.asarray(-2, dtype), f"{one}b": np.asarray(2, dtype)}
            nodes.append(h.make_node("Clip", [name, f"{one}a", f"{one}b"], [made]))
        else:
            op_type = {"bias": "Add", "row": "Sub", "prelu": "PRelu"}.get(step, "Mul")
            held[one] = {"scalar": values[:1].reshape(()), "row": values[None]}.get(step, values)
            inputs = [name, one] if number % 2 or op_type in ("Sub", "PRelu") else [one, name]
            nodes.append(h.make_node(op_type, inputs, [made]))
        name = made
    return nodes, held, name


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    op_types=st.tuples(*[st.sampled_from(["MatMul", "Gemm"])] * 2),
    sizes=st.tuples(st.integers(3, 8), st.integers(4, 9), st.integers(3, 8)),
    drawn=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    next_form=st.sampled_from(["dense", "pair", "pivoted"]),
    stored=st.sampled_from(["initializer", "constant"]),
    optimized=st.booleans(),
)
def test_dense_layers(
    data: st.DataObject,
    op_types: tuple[str, str],
    sizes: tuple[int, int, int],
    drawn: list[str],
    dtype: str,
    next_form: str,
    stored: str,
    optimized: bool,
) -> None:
    # onnxruntime can't fuse these two in float64, and doesn't load even the original.
    assume(not (optimized and dtype == "float64" and ("Relu", "clip") in pairwise(drawn)))
    first, middle, last = sizes
    order = data.draw(st.permutations(range(middle)))
    ranks = {"w0": min(first, middle) - 1}
    held = {"w0": of_rank(ranks["w0"], first, middle, 0, dtype)}
    orders: dict[str, Sequence[int]] = {"w0": order}
    if next_form != "dense":
        ranks["w1"] = min(middle, last) - 1
    if next_form == "pivoted":
        orders["w1"] = []
    held["w1"] = of_rank(min(middle, last) - 1, middle, last, 4, dtype)
    between, constants, name = steps(drawn, "h", middle, dtype)
    nodes = [h.make_node(op_types[0], ["x", "w0"], ["h"], name="a"), *between]
    if op_types[0] == "Gemm":
        held["bias"] = weight(middle, seed=6, dtype=dtype)
        nodes[0].input.append("bias")
    nodes.append(h.make_node(op_types[1], [name, "w1"], ["y"], name="b"))
    held |= constants
    if op_types[1] == "Gemm":
        nodes[-1].attribute.append(h.make_attribute("transB", 1))
        held["w1"] = held["w1"].T.copy()
    if stored == "constant":
        nodes = [*(constant(key, array) for key, array in held.items()), *nodes]
    x = value("x", (3, first), KIND[dtype])
    model = make_model(nodes, [x], [value("y", (3, last), KIND[dtype])], held if stored == "initializer" else {})
    new = reordered(model, ranks, orders)
    assert_equal(model, new, weight(3, first, seed=2, dtype=dtype), optimized)


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    kernel=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    middle=st.integers(5, 8),
    drawn=st.lists(st.sampled_from(["Relu", "pool", "norm", "depthwise", "mean"]), max_size=3),
    next_form=st.sampled_from(["dense", "pair"]),
    optimized=st.booleans(),
)
def test_convolutions(
    data: st.DataObject, kernel: list[int], middle: int, drawn: list[str], next_form: str, optimized: bool
) -> None:
    spatial, rank = len(kernel), 3
    order = data.draw(st.permutations(range(middle)))
    enters = 5
    size = enters * int(np.prod(kernel))
    held = {"w0": of_rank(rank, size, middle, 0, "float32").T.reshape(middle, enters, *kernel).copy()}
    held |= {"b0": weight(middle, seed=3)}
    nodes = [h.make_node("Conv", ["x", "w0", "b0"], ["h"], name="a")]
    name = "h"
    for number, step in enumerate(drawn):
        made = f"s{number}"
        if step == "Relu":
            nodes.append(h.make_node("Relu", [name], [made]))
        elif step == "pool":
            nodes.append(h.make_node("MaxPool", [name], [made], kernel_shape=[2] * spatial))
        elif step == "mean":
            nodes.append(h.make_node("AveragePool", [name], [made], kernel_shape=[2] * spatial))
        elif step == "norm":
            inputs = [f"n{number}{part}" for part in "sbmv"]
            held |= {one: weight(middle, seed=30 + i) ** 2 + np.float32(0.5) for i, one in enumerate(inputs)}
            nodes.append(h.make_node("BatchNormalization", [name, *inputs], [made]))
        else:
            held |= {f"d{number}": weight(middle, 1, *[2] * spatial, seed=40), f"e{number}": weight(middle, seed=41)}
            nodes.append(h.make_node("Conv", [name, f"d{number}", f"e{number}"], [made], group=middle))
        name = made
    held["w1"] = of_rank(4, middle * 2**spatial, 5, 7, "float32").T.reshape(5, middle, *[2] * spatial).copy()
    nodes.append(h.make_node("Conv", [name, "w1"], ["y"], name="b"))
    shape = (2, enters, *[9] * spatial)
    model = make_model(nodes, [value("x", shape)], [value("y", (None,) * len(shape))], held)
    ranks = {"w0": rank, **({"w1": 4} if next_form == "pair" else {})}
    assert_equal(model, reordered(model, ranks, {"w0": order}), weight(*shape, seed=2), optimized)


def test_nothing_but_the_values_changes() -> None:
    held = {"w0": of_rank(3, 6, 8, 0, "float32"), "c": weight(8), "w1": weight(8, 5)}
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["h"], name="a"),
        h.make_node("Add", ["h", "c"], ["s"], name="add"),
        h.make_node("Relu", ["s"], ["r"], name="relu"),
        h.make_node("MatMul", ["r", "w1"], ["y"], name="b"),
    ]
    model = make_model(nodes, [value("x", (2, 6))], [value("y", (2, 5))], held)
    order = [7, 2, 0, 1, 3, 4, 5, 6]
    new = reordered(model, {"w0": 3}, {"w0": order})
    assert [node.SerializeToString() for node in new.graph.node[-3:]] == [one.SerializeToString() for one in nodes[1:]]
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in new.graph.initializer}
    np.testing.assert_array_equal(values["c"], held["c"][order])
    np.testing.assert_array_equal(values["w1"], held["w1"][order])


def verdict(
    nodes: Sequence[onnx.NodeProto],
    held: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    **graph: Any,
) -> tuple[tuple[str, int], ...] | str:
    """What follows the outputs of the first site, or why they stay in their order."""
    weights = {"w0": weight(4, 6), "w1": weight(6, 4, seed=1), **(held or {})}
    first = h.make_node("MatMul", ["x", "w0"], ["h"], name="a")
    model = make_model([first, *nodes], [value("x", (6, 4))], [value(name) for name in outputs], weights)
    skeleton = load_model(model).skeleton
    sites, _ = find_sites(skeleton, op_types=OP_TYPES)
    found = find_followers(skeleton, sites)["a"]
    return found if isinstance(found, str) else tuple((one.tensor.name, one.axis) for one in found)


END = h.make_node("MatMul", ["h", "w1"], ["y"], name="b")
STAYS = "treats features differently, or sums over them with what isn't stored"


def test_what_follows() -> None:
    assert verdict([END]) == (("w1", 0),)
    gemm = h.make_node("Gemm", ["h", "w1"], ["y"], name="b", transB=1)
    assert verdict([gemm], {"w1": weight(4, 6)}) == (("w1", 1),)
    two = [END, h.make_node("MatMul", ["h", "w2"], ["z"], name="c")]
    assert set(verdict(two, {"w2": weight(1, 6, 3)}, ("y", "z"))) == {("w1", 0), ("w2", 1)}


@pytest.mark.parametrize(
    ("nodes", "held", "outputs", "reason"),
    [
        ([END], {}, ("y", "h"), "'h' is an output of the graph"),
        ([h.make_node("Softmax", ["h"], ["y"], name="s")], {}, ("y",), f"'s' (Softmax) {STAYS}"),
        ([h.make_node("MatMul", ["h", "x"], ["y"], name="s")], {}, ("y",), f"'s' (MatMul) {STAYS}"),
        ([h.make_node("MatMul", ["w2", "h"], ["y"], name="s")], {"w2": weight(3, 6)}, ("y",), f"'s' (MatMul) {STAYS}"),
        ([h.make_node("Gemm", ["h", "w1"], ["y"], name="s", transA=1)], {}, ("y",), f"'s' (Gemm) {STAYS}"),
        (
            [
                h.make_node("MatMul", ["x", "w2"], ["other"], name="o"),
                h.make_node("Mul", ["h", "other"], ["s"], name="gate"),
                h.make_node("MatMul", ["s", "w1"], ["y"], name="b"),
            ],
            {"w2": weight(4, 6)},
            ("y",),
            "'gate' (Mul) combines it with 'other', whose order stays",
        ),
        (
            # A bias that is itself in the other order isn't one feature for one output.
            [
                h.make_node("Relu", ["h"], ["r"]),
                h.make_node("Gemm", ["r", "w2", "h"], ["y"], name="s"),
            ],
            {"w2": weight(6, 6)},
            ("y",),
            f"'s' (Gemm) {STAYS}",
        ),
        (
            [h.make_node("Add", ["h", "c"], ["s"], name="add"), h.make_node("MatMul", ["s", "w1"], ["y"])],
            {"c": weight(1, 5)},
            ("y",),
            "'add' (Add) reads 'c' of shape [1, 5], expected 6 features on axis 1",
        ),
        (
            [
                h.make_node("Exp", ["c"], ["e"]),
                h.make_node("Add", ["h", "e"], ["s"], name="add"),
                h.make_node("MatMul", ["s", "w1"], ["y"]),
            ],
            {"c": weight(6)},
            ("y",),
            "'add' (Add) reads 'e', a constant that isn't stored",
        ),
        (
            [END, h.make_node("Relu", ["w1"], ["z"])],
            {},
            ("y", "z"),
            "'w1', which 'b' (MatMul) reads, has other uses",
        ),
        (
            [h.make_node("Transpose", ["w1"], ["t"]), h.make_node("Gemm", ["h", "t"], ["y"], name="b", transB=1)],
            {},
            ("y",),
            "'b' (Gemm) reads 't', which isn't stored as it is read",
        ),
    ],
)
def test_reasons_to_stay(
    nodes: list[onnx.NodeProto], held: dict[str, Array], outputs: tuple[str, ...], reason: str
) -> None:
    assert verdict(nodes, held, outputs) == reason


def test_a_value_that_a_subgraph_reads_stays() -> None:
    branch = h.make_graph([h.make_node("Relu", ["h"], ["z"])], "branch", [], [value("z")])
    node = h.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=branch)
    assert verdict([node], {"flag": np.asarray(True)}) == f"'if' (If) {STAYS}"


def test_a_convolution_given_more_dimensions_stays() -> None:
    held = {"w0": weight(6, 3, 1), "c": weight(1, 1, 6, 1), "w1": weight(4, 6, 1)}
    nodes = [
        h.make_node("Conv", ["x", "w0"], ["h"], name="a"),
        h.make_node("Add", ["h", "c"], ["s"], name="add"),
        h.make_node("Conv", ["s", "w1"], ["y"], name="b"),
    ]
    skeleton = load_model(make_model(nodes, [value("x", (1, 3, 5))], [value("y")], held)).skeleton
    sites, _ = find_sites(skeleton, op_types=OP_TYPES)
    assert find_followers(skeleton, sites)["a"] == "'add' (Add) gives it more dimensions"


def twins(rows: int, columns: int, dtype: str) -> Array:
    """Each column twice, but for 1e-6: every block of columns is all but singular."""
    generator = np.random.default_rng(3)
    distinct = generator.standard_normal((rows, columns // 2)) * 0.9 ** np.arange(columns // 2) / np.sqrt(rows)
    near = distinct + 1e-6 * generator.standard_normal(distinct.shape)
    return np.asarray(np.stack([distinct, near], axis=2).reshape(rows, columns), dtype)


def layers(dtype: str, end: str = "Relu") -> onnx.ModelProto:
    held = {"w0": twins(64, 96, dtype), "c": weight(96, dtype=dtype), "w1": weight(96, 8, seed=1, dtype=dtype)}
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["h"], name="a"),
        h.make_node("Add", ["h", "c"], ["s"]),
        h.make_node(end, ["s"], ["r"]),
        h.make_node("MatMul", ["r", "w1"], ["y"], name="b"),
    ]
    x, y = value("x", ("n", 64), KIND[dtype]), value("y", ("n", 8), KIND[dtype])
    return make_model(nodes, [x], [y], held)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_where_no_block_holds_any_columns_are_pivots(dtype: str) -> None:
    config = Config(budget=KeepParams(0.6), objective="size", forms=("pivoted",), include=("a",), rank_multiple=8)
    feeds = [{"x": weight(32, 64, seed=seed, dtype=dtype)} for seed in range(4)]
    result = compress(layers(dtype), config, feeds=feeds)
    (site,) = result.sites
    assert site.form == "pivoted"
    assert site.solver.endswith("pivoted, outputs reordered")
    assert result.verdict is not None
    assert result.verdict.outputs[0].error < 0.2
    stays = compress(layers(dtype, "Softmax"), config, feeds=feeds)
    assert [site.form for site in stays.sites] == ["dense"]


def test_a_weight_of_two_sites_keeps_its_order() -> None:
    held = {"w0": weight(4, 4), "w1": weight(4, 3)}
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["h"], name="a"),
        h.make_node("MatMul", ["h", "w0"], ["k"], name="b"),
        h.make_node("MatMul", ["k", "w1"], ["y"], name="c"),
    ]
    model = load_model(make_model(nodes, [value("x", (2, 4))], [value("y")], held))
    sites, _ = find_sites(model.skeleton, op_types=OP_TYPES)
    orders = OutputOrders(model.skeleton, group_by_weight(sites))
    assert [orders.may_change(site.weight) for site in sites] == [False, False, False]


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 6), others=st.integers(0, 6), seed=st.integers(0, 99))
def test_pivots_are_chosen_well(rank: int, others: int, seed: int) -> None:
    right = weight(rank, rank + others, seed=seed)
    order = pivot_order(right)
    assert sorted(order) == list(range(rank + others))
    assert list(order[:rank]) == sorted(order[:rank])
    chosen = right[:, list(order)]
    found = pivot_factors(np.eye(rank), chosen, 0)
    assert found is not None
    # Businger and Golub's pivots bound each coefficient by 2 ** (r - 1), which is never near in practice.
    assert np.abs(found.after).max(initial=0.0) <= 2.0 ** (rank - 1) * (1 + 1e-9)
