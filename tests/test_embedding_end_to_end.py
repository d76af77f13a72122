"""A table of tokens through the whole pipeline: what it may be taken for, and whose rows are kept."""

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

TOKENS, WIDTH = 400, 32
COMMON = 40
"""Tokens that the feeds show; the others are never seen."""


def table() -> np.ndarray:
    """Rows of two kinds: common ones that lie in a space of their own, and the rest."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((TOKENS, WIDTH)) * np.geomspace(1.0, 0.1, WIDTH)
    rows[:COMMON] = generator.standard_normal((COMMON, 6)) @ generator.standard_normal((6, WIDTH)) * 0.3
    return rows.astype(np.float32)


def encoder() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        # With nothing in between, the table's second factor would go into the weight.
        helper.make_node("LeakyRelu", ["e"], ["a"], alpha=0.5),
        helper.make_node("MatMul", ["a", "w"], ["h"], name="fc"),
        helper.make_node("Tanh", ["h"], ["y"]),
    ]
    weight = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", WIDTH])],
        [numpy_helper.from_array(table(), "table"), numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds() -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    return [{"ids": generator.integers(0, COMMON, (4, 16))} for _ in range(8)]


def compress(budget: Budget, cache: Path | None = None, objective: str = "size") -> CompressionResult:
    config = Config(budget=budget, objective=objective, rank_multiple=4)  # type: ignore[arg-type]
    return lowrank_onnx.compress(encoder(), config, feeds=feeds(), cache=cache)


def factors(result: CompressionResult) -> dict[str, np.ndarray]:
    assert result.model is not None, result.message
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}


@pytest.mark.parametrize("budget", [KeepParams(0.5), KeepBytes(0.5)])
def test_it_is_taken_where_it_saves_bytes(budget: Budget) -> None:
    result = compress(budget)
    (row,) = (site for site in result.sites if site.op_type == "Gather")
    assert (result.status, row.form) == ("written", "embedding")
    assert (row.macs_before, row.macs_after) == (0, 64 * (row.rank or 0) * WIDTH)
    assert row.input_error is not None
    assert result.after is not None
    assert result.after.site_parameters <= 0.5 * result.before.site_parameters
    assert result.before.macs == 64 * WIDTH * WIDTH
    assert "360 of 400 rows of the table were never looked up" in row.note
    assert result.verdict is not None
    assert result.verdict.relative_error < 0.05


def test_rows_count_as_often_as_they_are_looked_up_and_none_for_nothing() -> None:
    found = factors(compress(KeepParams(0.5)))
    wide = table().astype(np.float64)
    approximation = found["table.left"].astype(np.float64) @ found["table.right"]
    missed = np.linalg.norm(approximation - wide, axis=1) ** 2
    rank = found["table.right"].shape[0]
    plain = np.linalg.svd(wide, compute_uv=False)[rank:]
    u, s, vt = np.linalg.svd(wide, full_matrices=False)
    unweighted = np.linalg.norm((u[:, :rank] * s[:rank]) @ vt[:rank] - wide, axis=1) ** 2
    assert missed[:COMMON].sum() < 0.1 * unweighted[:COMMON].sum()
    assert missed.sum() < 2.0 * np.sum(plain**2)


@pytest.mark.parametrize("budget", [KeepMacs(0.7), Speedup(1.01)])
def test_it_is_left_alone_where_it_could_only_lose(budget: Budget) -> None:
    result = compress(budget, objective="size" if isinstance(budget, KeepMacs) else "latency")
    (row,) = (site for site in result.sites if site.op_type == "Gather")
    assert row.form == "dense"
    if isinstance(budget, Speedup):
        assert row.reason == (
            "its latency is not known: a lookup multiplies nothing: factors could only make it slower"
        )


def test_a_cache_changes_nothing(tmp_path: Path) -> None:
    first, second = (factors(compress(KeepParams(0.5), tmp_path)) for _ in range(2))
    plain = factors(compress(KeepParams(0.5)))
    assert plain.keys() == first.keys() == second.keys()
    for name, values in plain.items():
        np.testing.assert_array_equal(first[name], values)
        np.testing.assert_array_equal(second[name], values)
