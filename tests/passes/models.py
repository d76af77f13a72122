"""Small models, factors by NumPy's SVD, and runs: what the tests of the pass share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lowrank_onnx.chain_factors import ChainWeight, chain_parts
from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.forms import ConvChain, Form, Pivoted
from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.model_io import load_model
from lowrank_onnx.passes import Rewrite, find_sites, rewrite
from lowrank_onnx.types import (
    Array,
    NewTensor,
    Rearrangement,
    Site,
    SiteChoice,
    Skipped,
    WeightRef,
    numpy_dtype,
    rearrange,
)
from lowrank_onnx.weight_reader import WeightReader

ORT_SILENT = 4
STRIPPED_BYTES = 64
"""Weights have at least as many in these tests, and shapes fewer."""


def tensor(name: str, array: Array) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def weight(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(numpy_dtype(dtype))


def value(name: str, shape: Sequence[int | str | None] | None = None, data_type: int = T.FLOAT) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, data_type, shape)


def constant(name: str, array: Array) -> onnx.NodeProto:
    return h.make_node("Constant", [], [name], value=tensor("", array))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    **graph: Any,
) -> onnx.ModelProto:
    initializers = [tensor(name, array) for name, array in (weights or {}).items()]
    return h.make_model(
        h.make_graph(list(nodes), "main", list(inputs), list(outputs), initializers, **graph),
        opset_imports=[h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1)],
        ir_version=ir_version,
    )


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(a.g for node in graph.node for a in node.attribute if a.HasField("g"))


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(model):
        yield from graph.initializer
        yield from (a.t for node in graph.node for a in node.attribute if a.HasField("t"))


def strip(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The skeleton of a model: tensors refer to keys instead of holding data; and the tensors by key."""
    skeleton, held = onnx.ModelProto(), {}
    skeleton.CopyFrom(model)
    for number, stored in enumerate(tensors(skeleton)):
        if len(stored.raw_data) >= STRIPPED_BYTES:
            kept = onnx.TensorProto()
            kept.CopyFrom(stored)
            held[f"old:{number}"] = kept
            stored.CopyFrom(reference(stored.name, stored.data_type, tuple(stored.dims), f"old:{number}"))
    return skeleton, held


def reference(name: str, data_type: int, dims: tuple[int, ...], key: str) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=T.EXTERNAL)
    proto.external_data.add(key="location", value=key)
    return proto


def placeholder(new: NewTensor, key: str) -> onnx.TensorProto:
    data_type = h.np_dtype_to_tensor_dtype(numpy_dtype(new.dtype))
    return reference(new.name, data_type, new.shape, f"new:{key}")


def restore(skeleton: onnx.ModelProto, held: dict[str, onnx.TensorProto]) -> onnx.ModelProto:
    """The complete model again."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    for stored in tensors(model):
        if stored.data_location == T.EXTERNAL:
            name = stored.name
            stored.CopyFrom(held[stored.external_data[0].value])
            stored.name = name
    return model


def factor(matrices: Array, rank: int) -> tuple[Array, Array]:
    """Balanced factors (groups, in, r) and (groups, r, out) by a float64 SVD."""
    u, s, vt = np.linalg.svd(matrices.astype(np.float64), full_matrices=False)
    root = np.sqrt(s[:, :rank])
    return u[:, :, :rank] * root[:, None, :], root[:, :, None] * vt[:, :rank]


@dataclass(frozen=True)
class Outcome:
    model: onnx.ModelProto
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    result: Rewrite
    skeleton: onnx.ModelProto


def sites_of(model: onnx.ModelProto) -> tuple[Site, ...]:
    return find_sites(model, op_types=OP_TYPES)[0]


def reasons_of(model: onnx.ModelProto) -> dict[str, str]:
    """Name -> reason of every skipped node, after making sure that nothing is a site."""
    sites, skipped = find_sites(model, op_types=OP_TYPES)
    assert not sites
    return {item.name: item.reason for item in skipped}


def reason_of(model: onnx.ModelProto) -> str:
    """The reason of the only skipped node."""
    (reason,) = reasons_of(model).values()
    return reason


def choose(site: Site, rank: int, form: Form | None = None) -> SiteChoice:
    return SiteChoice(site, form or site.forms[0], rank, "svd", 0.25, 0.125)


def parts_of(form: Form, matrices: Array, rank: int) -> dict[str, Array]:
    """The parts of a form, in float64."""
    if isinstance(form, ConvChain):
        as_it_is = Rearrangement(matrices.shape, (0, 1, 2), matrices.shape)
        ref = WeightRef((), "w", "initializer", "float64", matrices.shape)
        return chain_parts(ChainWeight(ref, matrices.astype(np.float64), as_it_is, None, "cpu"), form, rank)
    left, right = factor(matrices, rank)
    if not isinstance(form, Pivoted):
        return {"left": left, "right": right}
    pivoted = pivot_factors(left[0], right[0], form.start)
    assert pivoted is not None
    return {"left": pivoted.left[None], "before": pivoted.before[None], "after": pivoted.after[None]}


def compress(model: onnx.ModelProto, rank_of: Callable[[Site], int] | None = None, form: Form | None = None) -> Outcome:
    """Find all sites of `model`, factorize them (to full rank unless told) and rewrite; checked by onnx's checker.

    They are written in `form`, else each in its plain one.
    """
    skeleton, held = strip(model)
    sites, skipped = find_sites(skeleton, op_types=OP_TYPES)
    chosen = [choose(site, rank_of(site) if rank_of else site.shape.max_rank, form) for site in sites]
    result = rewrite(skeleton, chosen, tool_version="1.2.3", placeholder=placeholder)
    choices = {choice.site.weight: choice for choice in chosen}
    biases = [site.bias for site in sites if site.bias is not None]
    reader = WeightReader(load_model(model), [*choices, *biases])
    for new in result.new_tensors:
        choice = choices[new.weight]
        stored = reader.read(new.weight)
        parts = parts_of(choice.form, rearrange(stored, choice.site.to_matrices), choice.rank)
        if new.bias is not None:
            rounded = {part: array.astype(numpy_dtype(new.dtype)).astype(np.float64) for part, array in parts.items()}
            bias = reader.read(new.bias).astype(np.float64)
            values = rearrange(choice.form.write_bias(new.part, bias, rounded), new.arrangement)
        else:
            values = rearrange(parts[new.part], new.arrangement)
        assert values.shape == new.shape
        held[f"new:{new.key}"] = tensor(new.name, values.astype(numpy_dtype(new.dtype)))
    complete = restore(result.skeleton, held)
    onnx.checker.check_model(complete, full_check=True)
    return Outcome(complete, sites, skipped, result, skeleton)


def run_ort(model: onnx.ModelProto, feed: dict[str, Array], *, optimized: bool = False) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ORT_SILENT
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feed)]


def run_reference(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, feed)]


def assert_same(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feed: dict[str, Array],
    *,
    tolerance: float,
    run: Callable[[onnx.ModelProto, dict[str, Array]], list[Array]] = run_ort,
) -> None:
    """Same shapes and dtypes, and a relative L2 difference of at most `tolerance`, for every output."""
    expected, found = run(original, feed), run(candidate, feed)
    assert len(expected) == len(found) > 0
    for y, z in zip(expected, found, strict=True):
        assert y.shape == z.shape
        assert y.dtype == z.dtype
        assert y.size > 0
        difference = np.linalg.norm(y.astype(np.float64) - z.astype(np.float64))
        assert difference <= tolerance * np.linalg.norm(y.astype(np.float64))
