"""The names that options are chosen from: operators and forms."""

from __future__ import annotations

OP_TYPES: tuple[str, ...] = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Gather"),
    *("FusedMatMul", "FusedGemm", "FusedConv", "Attention"),
)
"""Operators whose weights can be factorized."""

FORM_NAMES: tuple[str, ...] = (
    "pair",
    "conv_channel",
    "conv_transpose_channel",
    "pivoted",
    "conv_spatial",
    "conv_input",
    "conv_tucker",
    "shared",
    "embedding",
    "tied",
)
"""The forms that weights can be written in (`lowrank_onnx.forms`)."""
