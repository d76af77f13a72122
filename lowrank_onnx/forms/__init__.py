"""How a rank-r approximation is written, in numbers only: one module a form.

A form knows its parts (the tensors that are stored), its parameters, its multiply-accumulates, its largest useful rank
and the matrices that its parts stand for. The operator's rule in `lowrank_onnx.passes` knows the nodes that write it;
neither knows how ranks are chosen.
"""

from __future__ import annotations

from lowrank_onnx.forms.conv_chain import ConvChain, ConvGeometry
from lowrank_onnx.forms.conv_spatial import ConvSpatial
from lowrank_onnx.forms.conv_tucker import ConvInput, ConvTucker
from lowrank_onnx.forms.embedding import EMBEDDING, LOOKUP, Embedding
from lowrank_onnx.forms.form import MATRIX, Form
from lowrank_onnx.forms.pair import CONV_CHANNEL, CONV_TRANSPOSE_CHANNEL, PAIR, Pair
from lowrank_onnx.forms.pivoted import PIVOTED, Pivoted
from lowrank_onnx.forms.shared import SHARED, Shared
from lowrank_onnx.forms.tied import TIED, TWO_SIDED, Tied

__all__ = [
    "CONV_CHANNEL",
    "CONV_TRANSPOSE_CHANNEL",
    "EMBEDDING",
    "LOOKUP",
    "MATRIX",
    "PAIR",
    "PIVOTED",
    "SHARED",
    "TIED",
    "TWO_SIDED",
    "ConvChain",
    "ConvGeometry",
    "ConvInput",
    "ConvSpatial",
    "ConvTucker",
    "Embedding",
    "Form",
    "Pair",
    "Pivoted",
    "Shared",
    "Tied",
]
