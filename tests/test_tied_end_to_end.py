"""A table that is also the output head, through the whole pipeline: one pair, counted once, judged at both nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx import CompressionResult, Config, KeepBytes, KeepMacs, KeepParams, Speedup
from lowrank_onnx.config import Budget

TOKENS, WIDTH = 300, 32


def table(dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((TOKENS, WIDTH)) @ np.diag(np.geomspace(1.0, 0.02, WIDTH))
    turned: np.ndarray = rows @ np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    return turned.astype(dtype)


def language_model(*, gemm: bool = False, encoded: bool = False, dtype: str = "float32") -> onnx.ModelProto:
    """Looks rows up, mixes them, and multiplies by the table's transpose."""
    held = {"w": np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(dtype) / WIDTH**0.5}
    decode: list[onnx.NodeProto] = []
    if encoded:
        held |= {"q": np.round(table() * 40).astype(np.int8), "scale": np.array(1 / 40, np.float32)}
        decode = [
            helper.make_node("Cast", ["q"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "scale"], ["table"]),
        ]
    else:
        held["table"] = table(dtype)
    head = (
        helper.make_node("Gemm", ["h", "table"], ["y"], name="head", transB=1)
        if gemm
        else helper.make_node("MatMul", ["h", "turned"], ["y"], name="head")
    )
    nodes = [
        *decode,
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("LeakyRelu", ["e"], ["a"], alpha=0.5),
        helper.make_node("MatMul", ["a", "w"], ["m"], name="mix"),
        helper.make_node("Tanh", ["m"], ["h"]),
        *([] if gemm else [helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0])]),
        head,
    ]
    dims = ["n"] if gemm else ["n", "t"]
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, dims)],
        [helper.make_tensor_value_info("y", data_type, [*dims, TOKENS])],
        [numpy_helper.from_array(np.asarray(values, values.dtype), name) for name, values in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(gemm: bool = False) -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    return [{"ids": generator.zipf(1.5, (16,) if gemm else (4, 16)).clip(1, TOKENS) - 1} for _ in range(8)]


def compress(
    budget: Budget, model: onnx.ModelProto | None = None, *, gemm: bool = False, objective: str = "size", **more: object
) -> CompressionResult:
    config = Config(budget=budget, objective=objective, rank_multiple=4, **more)  # type: ignore[arg-type]
    return lowrank_onnx.compress(model or language_model(gemm=gemm), config, feeds=feeds(gemm))


@pytest.mark.parametrize(("budget", "gemm"), [(KeepParams(0.5), False), (KeepBytes(0.5), True), (KeepMacs(0.5), False)])
def test_budgets_count_it_once_and_its_work_at_both_nodes(budget: Budget, gemm: bool) -> None:
    result = compress(budget, gemm=gemm)
    assert result.status == "written", result.message
    embed, head, mix = (next(s for s in result.sites if s.name == name) for name in ("embed", "head", "mix"))
    assert (embed.form, head.form, embed.weight, head.weight) == ("tied", "tied", "table", "table")
    assert embed.rank == head.rank is not None
    rank, rows = head.rank or 0, 16 if gemm else 64
    assert (embed.macs_before, embed.macs_after) == (0, rows * rank * WIDTH)
    assert (head.macs_before, head.macs_after) == (rows * TOKENS * WIDTH, rows * rank * (TOKENS + WIDTH))
    assert (embed.in_features, embed.out_features) == (TOKENS, WIDTH)
    assert (head.in_features, head.out_features) == (WIDTH, TOKENS)
    assert result.before.site_parameters == (TOKENS + WIDTH) * WIDTH
    assert result.after is not None
    assert result.after.site_parameters == rank * (TOKENS + WIDTH) + mix.parameters_after
    assert embed.importance == head.importance is not None
    assert result.after.macs == sum(site.macs_after or 0 for site in result.sites)
    for share, after, before in (
        (KeepParams, result.after.site_parameters, result.before.site_parameters),
        (KeepMacs, result.after.macs, result.before.macs),
    ):
        assert not isinstance(budget, share) or after <= 0.5 * (before or 0)


def test_the_file_holds_the_pair_once(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    config = Config(budget=KeepParams(0.5), objective="size", rank_multiple=4)
    result = lowrank_onnx.compress(language_model(), config, output=path, feeds=feeds())
    head = next(site for site in result.sites if site.name == "head")
    held = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    pair = sum(numpy_helper.to_array(held[name]).nbytes for name in ("table.left", "table.right"))
    assert pair == 4 * (head.rank or 0) * (TOKENS + WIDTH) == head.bytes_after
    assert "table" not in held
    assert path.stat().st_size < sum(numpy_helper.to_array(tensor).nbytes for tensor in held.values()) + 6000


@pytest.mark.parametrize("dtype", ["float16"])
def test_narrow_tables(dtype: str) -> None:
    result = compress(KeepParams(0.6), language_model(dtype=dtype))
    assert result.status == "written", result.message
    assert result.model is not None
    kept = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert kept["table.left"] == kept["table.right"] == TensorProto.FLOAT16


def test_scaled_integers_are_measured_at_both_nodes() -> None:
    result = compress(KeepParams(0.5), language_model(encoded=True))
    rows = [site for site in result.sites if site.weight == "q"]
    assert [row.name for row in rows] == ["embed", "head"]
    assert all(row.importance is not None and "not measured" not in row.note for row in rows)
    if rows[0].rank is not None:
        assert rows[0].bytes_after < rows[0].bytes_before


def test_its_time_is_that_of_the_head() -> None:
    result = compress(Speedup(1.01), objective="latency")
    embed, head = (next(site for site in result.sites if site.name == name) for name in ("embed", "head"))
    assert head.latency_before_ms is not None
    assert head.latency_before_ms == embed.latency_before_ms
    assert "not known" not in head.reason


def test_it_is_not_refined_and_the_report_says_why() -> None:
    result = compress(KeepParams(0.5))
    assert result.refinement is not None
    (table_row,) = (one for one in result.refinement.weights if one.weight == "table")
    assert not table_row.refined
    assert table_row.reason == "its weight is shared by 2 nodes, whose inputs don't change alike"


def test_what_leaves_one_reader_out_leaves_the_other() -> None:
    result = compress(KeepParams(0.5), exclude=("head",))
    reasons = {item.name: item.reason for item in result.skipped}
    assert reasons["head"] == "excluded by 'head'"
    assert reasons["embed"] == "shares weight 'table' with 'head', which is left out"


def test_forms_narrow_it() -> None:
    result = compress(KeepParams(0.8), forms=("pair",))
    reasons = {item.name: item.reason for item in result.skipped}
    expected = "can be written as tied, none of which is among the forms pair"
    assert (reasons["embed"], reasons["head"]) == (expected, expected)


def test_inspect_names_both_readers() -> None:
    found = lowrank_onnx.inspect(language_model())
    rows = {site.name: site for site in found.sites if site.weight == "table"}
    assert rows.keys() == {"embed", "head"}
    assert (rows["embed"].macs, rows["embed"].parameters, rows["head"].parameters) == (
        0,
        TOKENS * WIDTH,
        TOKENS * WIDTH,
    )
