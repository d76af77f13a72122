"""Operators of onnxruntime's own domain (com.microsoft) that its optimizer makes of standard ones.

1. FusedMatMul, ``alpha A' B'``: the first node is a FusedMatMul with everything that the original had, the second a
   MatMul. Declined with transBatchA or transBatchB, and for weights that aren't 2-D.
2. FusedGemm and FusedConv, a Gemm or a Conv and an activation function: as Gemm and Conv, with the function in the last
   node.
3. Attention, whose weight projects its input to queries, keys and values: it takes an input of any width, so that a
   MatMul by L may precede it, and R takes the place of the weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from lowrank_onnx.forms import CONV_CHANNEL, PAIR
from lowrank_onnx.passes import conv, gemm
from lowrank_onnx.passes.graph_view import ScopeView
from lowrank_onnx.passes.rule import (
    Candidate,
    Parts,
    Rule,
    TensorLayout,
    Writer,
    kept,
    node_problem,
    straight,
    too_small,
    transposed,
    weight_operand,
    weight_slot,
)
from lowrank_onnx.passes.value_types import Dims
from lowrank_onnx.passes.weight_source import Activation, StoredWeight
from lowrank_onnx.types import Rearrangement, Site, SiteChoice, Skipped

DOMAIN = "com.microsoft"
_FLOAT, _INT, _STRING = onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING
_FLOATS, _INTS = onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS

_MATMUL_ATTRIBUTES = {"alpha": _FLOAT, "transA": _INT, "transB": _INT, "transBatchA": _INT, "transBatchB": _INT}
_GEMM_FUNCTION = {"activation": _STRING} | {f"activation_{name}": _FLOAT for name in ("alpha", "beta", "gamma")}
_CONV_FUNCTION = {"activation": _STRING, "activation_params": _FLOATS}
_ATTENTION_ATTRIBUTES = {
    "num_heads": _INT,
    "unidirectional": _INT,
    "qkv_hidden_sizes": _INTS,
    "mask_filter_value": _FLOAT,
    "scale": _FLOAT,
    "past_present_share_buffer": _INT,
    "do_rotary": _INT,
    "rotary_embedding_dim": _INT,
}
_MOST_ATTENTION_INPUTS = 7


def match_fused_matmul(candidate: Candidate) -> Site | Skipped:
    """A site for a 2-D weight on either side, or the reason for none."""
    problem = node_problem(candidate, inputs=(2, 2), attributes=_MATMUL_ATTRIBUTES)
    if problem:
        return candidate.skip(problem)
    operand = weight_operand(candidate)
    if isinstance(operand, Skipped):
        return operand
    slot, weight = operand
    attributes, shape = candidate.node.attrs, weight.ref.shape
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return candidate.skip("it moves a batch dimension (transBatchA, transBatchB)", weight)
    if len(shape) != 2:
        return candidate.skip(f"weight has shape {list(shape)}, expected a matrix", weight)
    stored_transposed = bool(attributes.get(("transA", "transB")[slot], 0)) == (slot == 1)
    in_features, out_features = (shape[1], shape[0]) if stored_transposed else shape
    problem = too_small(in_features, out_features)
    if problem:
        return candidate.skip(problem, weight)
    return candidate.site(
        weight,
        slot=1 - slot,
        to_matrices=Rearrangement(
            (1, *shape), (0, 2, 1) if stored_transposed else (0, 1, 2), (1, in_features, out_features)
        ),
        forms=(PAIR,),
        counted=candidate.proto.output[0],
        features=out_features,
    )


def _matmul_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    """As they lie with the weight on the right, both transposed with the weight on the left."""
    shape, rank = choice.site.shape, choice.rank
    left, right = (1, shape.in_features, rank), (1, rank, shape.out_features)
    if weight_slot(node, choice.site) == 1:
        return straight("left", left, left[1:]), straight("right", right, right[1:])
    return transposed("left", left, (rank, shape.in_features)), transposed("right", right, (shape.out_features, rank))


def _emit_matmul(parts: Parts) -> tuple[Any, ...]:
    slot = 1 if parts.inputs[0].name == parts.site.input else 0
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    activation, attributes = parts.inputs[1 - slot], kept(parts.attributes)
    attributes.pop(("transA", "transB")[slot], None)
    first, second = ([activation, left], [mid, right]) if slot == 1 else ([left, activation], [right, mid])
    return (
        gs.Node("FusedMatMul", "left", attrs=attributes, inputs=first, outputs=[mid]),
        gs.Node("MatMul", inputs=second, outputs=parts.outputs),
    )


def _matmul_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    site = choice.site
    dims = scope.dims(site.output)
    if not dims or len(dims) < 2:
        return {"mid": None}
    on_the_right = weight_slot(scope.nodes[site.node_index], site) == 1
    return {"mid": (*dims[:-1], choice.rank) if on_the_right else (*dims[:-2], choice.rank, dims[-1])}


def match_fused_gemm(candidate: Candidate) -> Site | Skipped:
    """As for Gemm."""
    site = gemm.match_gemm(candidate, extra=_GEMM_FUNCTION)
    return replace(site, forms=(PAIR,), bias=None) if isinstance(site, Site) else site


def _emit_gemm(parts: Parts) -> tuple[Any, ...]:
    first, last = gemm.emit_pair(parts)
    last.op = "FusedGemm"
    return first, last


def match_fused_conv(candidate: Candidate) -> Site | Skipped:
    """As for Conv; declined where it also adds a tensor."""
    if len(candidate.proto.input) > 3:
        return candidate.skip("it adds another tensor (input Z), which isn't covered", candidate.source(1))
    site = conv.match_conv(candidate, extra=_CONV_FUNCTION)
    return replace(site, forms=site.forms[:1], bias=None, shares=None) if isinstance(site, Site) else site


def _emit_conv(parts: Parts) -> tuple[Any, ...]:
    first, last = conv.emit_channel(parts)
    last.op = "FusedConv"
    last.attrs.update({name: first.attrs.pop(name) for name in _CONV_FUNCTION if name in first.attrs})
    return first, last


def match_attention(candidate: Candidate) -> Site | Skipped:
    """A site for a stored projection of an activation, or the reason for none."""
    problem = node_problem(candidate, inputs=(2, _MOST_ATTENTION_INPUTS), attributes=_ATTENTION_ATTRIBUTES)
    if problem:
        return candidate.skip(problem)
    weight = candidate.source(1)
    if not isinstance(weight, StoredWeight):
        return candidate.skip(weight.reason, weight)
    if not isinstance(candidate.source(0), Activation):
        return candidate.skip("both inputs are constant: fold constants first", weight)
    shape = weight.ref.shape
    problem = f"weight has shape {list(shape)}, expected a matrix" if len(shape) != 2 else too_small(*shape)
    if problem:
        return candidate.skip(problem, weight)
    return candidate.site(
        weight,
        slot=0,
        to_matrices=Rearrangement((1, *shape), (0, 1, 2), (1, *shape)),
        forms=(PAIR,),
        counted=candidate.proto.input[0],
        features=shape[0],
    )


def _attention_layout(node: onnx.NodeProto, choice: SiteChoice) -> tuple[TensorLayout, ...]:
    del node
    shape, rank = choice.site.shape, choice.rank
    left, right = (1, shape.in_features, rank), (1, rank, shape.out_features)
    return straight("left", left, left[1:]), straight("right", right, right[1:])


def _emit_attention(parts: Parts) -> tuple[Any, ...]:
    activation, _, *rest = parts.inputs
    left, right, mid = parts.tensors["left"], parts.tensors["right"], parts.values["mid"]
    return (
        gs.Node("MatMul", "left", inputs=[activation, left], outputs=[mid]),
        gs.Node("Attention", attrs=kept(parts.attributes), inputs=[mid, right, *rest], outputs=parts.outputs),
    )


def _attention_values(scope: ScopeView, choice: SiteChoice) -> dict[str, Dims | None]:
    dims = scope.dims(choice.site.input)
    return {"mid": (*dims[:-1], choice.rank) if dims else None}


_CONV_WRITER = Writer(conv.channel_layout, conv.channel_values, _emit_conv)

FUSED_RULES: tuple[Rule, ...] = (
    Rule("FusedMatMul", match_fused_matmul, {"pair": Writer(_matmul_layout, _matmul_values, _emit_matmul)}, DOMAIN),
    Rule("FusedGemm", match_fused_gemm, {"pair": Writer(gemm.pair_layout, gemm.pair_values, _emit_gemm)}, DOMAIN),
    Rule("FusedConv", match_fused_conv, {PAIR.name: _CONV_WRITER, CONV_CHANNEL.name: _CONV_WRITER}, DOMAIN),
    Rule("Attention", match_attention, {"pair": Writer(_attention_layout, _attention_values, _emit_attention)}, DOMAIN),
)
"""The rules of onnxruntime's own operators."""
