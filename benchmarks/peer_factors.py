"""Factors as other work makes them: SVD-LLM's whitening, and PIFA's pivots. Re-implemented from the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import scipy.linalg
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lowrank_onnx import linalg
from lowrank_onnx.forms import MATRIX, PAIR
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments import Moment
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Factors, Site, WeightRef, rearrange
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight

Doubles = NDArray[np.float64]


def cholesky_root(second_moment: Doubles) -> Doubles:
    """Lower triangular S with S S' = X'X, as SVD-LLM takes it (arXiv 2403.07378, Algorithm 1).

    A moment that isn't positive definite is shifted by its least eigenvalue and a millionth of its mean one, as the
    paper's program does.
    """
    try:
        return np.asarray(np.linalg.cholesky(second_moment), np.float64)
    except np.linalg.LinAlgError:
        size = len(second_moment)
        shift = max(0.0, -float(np.linalg.eigvalsh(second_moment)[0])) + 1e-6 * float(np.trace(second_moment)) / size
        return np.asarray(np.linalg.cholesky(second_moment + max(shift, 1e-30) * np.eye(size)), np.float64)


def whiten_and_truncate(W: Array, second_moment: Doubles, rank: int) -> tuple[Array, Array]:
    """SVD-LLM's factors (in, r) and (r, out): the truncated SVD of S' W, with S' taken off again; balanced.

    Smaller ranks are prefixes.
    """
    root = cholesky_root(second_moment)
    found = linalg.factor((root.T @ W).astype(np.float32), rank, method="eigen", device="cpu")
    left = scipy.linalg.solve_triangular(root, found.left.astype(np.float64), trans="T", lower=True)
    return left.astype(np.float32), found.right.astype(np.float32)


def spool_whitened(
    model: Model,
    groups: Sequence[SharedWeight],
    ranks: Mapping[WeightRef, int],
    moments: Mapping[WeightRef, Moment],
    spool: FactorSpool,
) -> None:
    """Keep SVD-LLM's factors of the weights that have a rank; of one whose inputs are unknown, those of plain SVD."""
    reader = WeightReader(model, [group.weight for group in groups])
    for group in groups:
        rank = ranks.get(group.weight, 0)
        if not rank:
            continue
        matrices = rearrange(reader.read(group.weight), group.sites[0].to_matrices)
        moment = moments.get(group.weight)
        roots = np.stack([np.eye(matrices.shape[1])] * len(matrices)) if moment is None else moment.second_moment
        pairs = [whiten_and_truncate(W, C, rank) for W, C in zip(matrices, roots, strict=True)]
        factors = Factors(
            left=np.stack([left for left, _ in pairs]),
            right=np.stack([right for _, right in pairs]),
            singular_values=np.zeros((len(pairs), rank), np.float32),
            relative_error=0.0,
            spectral_error=0.0,
            solver="whitened by Cholesky, truncated",
        )
        spool.put_nested(group.weight, MATRIX, PAIR, factors)


def write_pivoted(source: Path, target: Path, factors: Sequence[tuple[Site, Array, Array]]) -> None:
    """Write matrix products as PIFA does (arXiv 2501.19090, Algorithms 1 and 2): any columns may be pivots.

    The product L R of a site's (in, r) and (r, out) becomes ``z = x @ (L B)`` with B the r pivot columns of R, by QR
    with column pivoting; then the others, ``z @ inverse(B) R_rest``, and a Gather that puts all in their order.
    """
    model = onnx.load(source)
    by_output = {site.output: (left, right) for site, left, right in factors}
    nodes = []
    for node in model.graph.node:
        if node.output[0] not in by_output:
            nodes.append(node)
            continue
        pivots, rest, order = pivot_columns(*by_output[node.output[0]])
        nodes += _pivoted_nodes(model.graph, node, pivots, rest, order)
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    # The weights that were replaced may be Constant nodes.
    nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stored = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    onnx.save(model, target)


def pivot_columns(left: Array, right: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """(in, r) that computes the pivots, (r, out - r) that combines the others from them, and where each output lies."""
    rank = right.shape[0]
    upper, places = scipy.linalg.qr(right.astype(np.float64), mode="r", pivoting=True)
    # R P = Q [T11 T12]: the other columns are the pivots times inverse(T11) T12.
    rest = scipy.linalg.solve_triangular(upper[:, :rank], upper[:, rank:])
    pivots = left.astype(np.float64) @ right[:, places[:rank]].astype(np.float64)
    return pivots.astype(np.float32), rest.astype(np.float32), np.argsort(places).astype(np.int64)


def _pivoted_nodes(
    graph: onnx.GraphProto, node: onnx.NodeProto, pivots: Array, rest: Array, order: NDArray[np.int64]
) -> list[onnx.NodeProto]:
    output = node.output[0]
    parts = {f"{output}.pivots": pivots, f"{output}.rest": rest, f"{output}.order": order}
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in parts.items())
    bias = list(node.input[2:3])
    ordered = f"{output}.ordered" if bias else output
    made = [
        helper.make_node("MatMul", [node.input[0], f"{output}.pivots"], [f"{output}.z"]),
        helper.make_node("MatMul", [f"{output}.z", f"{output}.rest"], [f"{output}.others"]),
        helper.make_node("Concat", [f"{output}.z", f"{output}.others"], [f"{output}.all"], axis=-1),
        helper.make_node("Gather", [f"{output}.all", f"{output}.order"], [ordered], axis=-1),
    ]
    return [*made, helper.make_node("Add", [ordered, *bias], [output])] if bias else made
