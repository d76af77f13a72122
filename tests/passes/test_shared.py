"""Sites that read the same tensor: which are offered the shared form, and that it is exact at exact rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.forms import Shared
from lowrank_onnx.passes import offer_forms, rewrite
from lowrank_onnx.types import Site, SiteChoice, numpy_dtype, rearrange
from tests.passes.models import (
    assert_same,
    choose,
    factor,
    make_model,
    placeholder,
    restore,
    run_ort,
    run_reference,
    sites_of,
    strip,
    tensor,
    value,
    weight,
)

TOLERANCE = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-11}
NAMES = ("pair", "pivoted", "shared", "conv_channel")


def matmuls(outs: list[int], in_features: int, dtype: str = "float32") -> onnx.ModelProto:
    """Products of one input with several weights."""
    data_type = h.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    nodes = [h.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], name=f"fc{i}") for i in range(len(outs))]
    stored = {f"w{i}": weight(in_features, out, seed=i, dtype=dtype) for i, out in enumerate(outs)}
    return make_model(
        nodes,
        [value("x", ["n", in_features], data_type)],
        [value(f"y{i}", ["n", out], data_type) for i, out in enumerate(outs)],
        stored,
    )


def offered(model: onnx.ModelProto) -> dict[str, Shared]:
    sites, skipped = offer_forms(sites_of(model), NAMES)
    assert skipped == ()
    return {site.name: form for site in sites for form in site.forms if isinstance(form, Shared)}


def written(model: onnx.ModelProto, rank: int) -> onnx.ModelProto:
    """All sites that share an input in that form, with the factors of their concatenated weights."""
    skeleton, held = strip(model)
    sites, _ = offer_forms(sites_of(skeleton), ("shared",))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    matrices = {site.weight: rearrange(stored[site.weight.name], site.to_matrices) for site in sites}
    left, right = factor(np.concatenate(list(matrices.values()), axis=2), rank)
    result = rewrite(
        skeleton, [choose(site, rank, site.forms[0]) for site in sites], tool_version="1", placeholder=placeholder
    )
    starts = dict(zip(matrices, np.cumsum([0, *(m.shape[2] for m in matrices.values())]), strict=False))
    for new in result.new_tensors:
        columns = slice(starts[new.weight], starts[new.weight] + matrices[new.weight].shape[2])
        part = left if new.part == "left" else right[:, :, columns]
        held[f"new:{new.key}"] = tensor(new.name, rearrange(part, new.arrangement).astype(numpy_dtype(new.dtype)))
    complete = restore(result.skeleton, held)
    onnx.checker.check_model(complete, full_check=True)
    return complete


@settings(max_examples=25, deadline=None)
@given(
    in_features=st.integers(2, 9),
    outs=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_matmuls_are_exact_at_full_rank(in_features: int, outs: list[int], dtype: str) -> None:
    model = matmuls(outs, in_features, dtype)
    candidate = written(model, min(in_features, sum(outs)))
    assert [node.name for node in candidate.graph.node] == ["fc0.left", *(f"fc{i}" for i in range(len(outs)))]
    names = {t.name for t in candidate.graph.initializer}
    assert names == {"w0.left", *(f"w{i}.right" for i in range(len(outs)))}
    x = weight(5, in_features, seed=9, dtype=dtype)
    assert_same(model, candidate, {"x": x}, tolerance=TOLERANCE[dtype], run=run_reference)


def convs(attributes: list[dict[str, Any]], kernel: int = 1, bias: bool = True) -> onnx.ModelProto:
    nodes, stored = [], {}
    for i, one in enumerate(attributes):
        stored[f"w{i}"] = weight(3 + i, 4, kernel, kernel, seed=i)
        inputs = ["x", f"w{i}"]
        if bias:
            stored[f"b{i}"] = weight(3 + i, seed=20 + i)
            inputs.append(f"b{i}")
        nodes.append(h.make_node("Conv", inputs, [f"y{i}"], name=f"conv{i}", **one))
    outputs = [value(f"y{i}", [None] * 4) for i in range(len(attributes))]
    return make_model(nodes, [value("x", [2, 4, 6, 5])], outputs, stored)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 1]}, {"pads": [1, 0, 2, 1], "kernel_shape": [1, 1]}])
@pytest.mark.parametrize("optimized", [True, False])
def test_pointwise_convolutions_are_exact_at_full_rank(attributes: dict[str, Any], bias: bool, optimized: bool) -> None:
    model = convs([attributes] * 3, bias=bias)
    candidate = written(model, 4)
    assert [node.op_type for node in candidate.graph.node] == ["Conv"] * 4
    x = weight(2, 4, 6, 5, seed=9)
    assert_same(model, candidate, {"x": x}, tolerance=1e-4, run=partial(run_ort, optimized=optimized))


def test_the_first_in_the_graph_leads() -> None:
    forms = offered(matmuls([3, 4, 5], 6))
    assert forms == {f"fc{i}": Shared("fc0", i == 0, 3, 12) for i in range(3)}


@pytest.mark.parametrize(
    "model",
    [
        matmuls([4], 4),
        convs([{}, {"strides": [2, 2]}]),
        convs([{}, {}], kernel=3),
        make_model(
            [h.make_node("MatMul", ["x", "w"], [f"y{i}"], name=f"fc{i}") for i in range(2)],
            [value("x", [2, 3])],
            [value(f"y{i}", [2, 4]) for i in range(2)],
            {"w": weight(3, 4)},
        ),
        make_model(
            [h.make_node("MatMul", [f"w{i}", "x"], [f"y{i}"], name=f"fc{i}") for i in range(2)],
            [value("x", [3, 2])],
            [value(f"y{i}", [4, 2]) for i in range(2)],
            {f"w{i}": weight(4, 3, seed=i) for i in range(2)},
        ),
        make_model(
            [h.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], name=f"fc{i}") for i in range(2)],
            [value(f"x{i}", [2, 3]) for i in range(2)],
            [value(f"y{i}", [2, 4]) for i in range(2)],
            {f"w{i}": weight(3, 4, seed=i) for i in range(2)},
        ),
        make_model(
            [
                h.make_node("FusedConv", ["x", f"w{i}"], [f"y{i}"], domain="com.microsoft", activation="Relu")
                for i in range(2)
            ],
            [value("x", [1, 4, 2, 2])],
            [value(f"y{i}", [1, 3, 2, 2]) for i in range(2)],
            {f"w{i}": weight(3, 4, 1, 1, seed=i) for i in range(2)},
        ),
    ],
    ids=["alone", "other strides", "larger kernels", "one weight", "weights on the left", "other inputs", "fused"],
)
def test_what_can_not_be_shared_is_not_offered(model: onnx.ModelProto) -> None:
    assert offered(model) == {}


def test_forms_are_narrowed_and_a_site_with_none_is_left_out() -> None:
    sites = sites_of(matmuls([3, 4], 6))
    kept, skipped = offer_forms(sites, ("pivoted",))
    assert [[form.name for form in site.forms] for site in kept] == [["pivoted"]] * 2
    assert skipped == ()
    kept, skipped = offer_forms(sites, ("conv_channel",))
    assert kept == ()
    assert {item.reason for item in skipped} == {
        "can be written as pair, pivoted, shared, none of which is among the forms conv_channel"
    }


def choices(sites: tuple[Site, ...], ranks: list[int]) -> list[SiteChoice]:
    return [choose(site, rank, site.forms[-1]) for site, rank in zip(sites, ranks, strict=False)]


@pytest.mark.parametrize(
    ("ranks", "found"), [([2, 2], "2 of 3 chosen, at rank 2"), ([2, 2, 1], "3 of 3 chosen, at rank 1, 2")]
)
def test_a_bundle_is_written_whole_or_not_at_all(ranks: list[int], found: str) -> None:
    skeleton, _ = strip(matmuls([3, 4, 5], 6))
    sites, _ = offer_forms(sites_of(skeleton), NAMES)
    with pytest.raises(ValueError, match=f"'fc0': {found}; expected all of them, at one rank"):
        rewrite(skeleton, choices(sites, ranks), tool_version="1", placeholder=placeholder)
