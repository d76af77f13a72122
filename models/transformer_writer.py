"""A transformer written node by node: what the exporters of such models share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.graph_writer import GraphWriter

HEAD_WIDTH = 64
EPSILON = 1e-5
"""Of the layer normalizations."""

Tensors = Mapping[str, NDArray[Any]]


class Transformer(GraphWriter):
    """Pre-normalised layers of attention and feed-forward, from tensors named as CTranslate2 names them.

    Parameters
    ----------
    tensors : by name; a linear layer's ``weight`` is (out, in), and that of a self-attention's ``linear_0`` holds
        query, key and value one after the other.
    root : the names of this part of the model begin with it.
    """

    def __init__(self, tensors: Tensors, root: str) -> None:
        super().__init__()
        self.tensors, self.root = tensors, root
        self.width = self.stored("layer_norm/gamma").size
        self.layers = sum(name.endswith("/ffn/layer_norm/gamma") and name.startswith(root) for name in tensors)

    def stored(self, name: str) -> NDArray[np.float32]:
        """A tensor of this part, in float32."""
        return self.tensors[f"{self.root}/{name}"].astype(np.float32)

    def linear(self, value: str, name: str, output: str, part: slice = slice(None)) -> str:
        """``value @ W + b`` with some of the columns of W, which the file holds as (out, in)."""
        weight = self.constant(f"{output}.weight", self.stored(f"{name}/weight")[part].T)
        bias = self.constant(f"{output}.bias", self.stored(f"{name}/bias")[part])
        return self.node("Add", [self.node("MatMul", [value, weight], f"{output}.product"), bias], output)

    def normalized(self, value: str, name: str) -> str:
        """Layer normalization over the last axis."""
        scale, shift = (self.constant(f"{name}/{part}", self.stored(f"{name}/{part}")) for part in ("gamma", "beta"))
        return self.node("LayerNormalization", [value, scale, shift], f"{name}/output", axis=-1, epsilon=EPSILON)

    def heads(self, value: str, order: Sequence[int]) -> str:
        """`value` cut into heads; `order` of (batch, position, head, feature)."""
        shape = self.constant("split_heads", np.array([0, 0, -1, HEAD_WIDTH], np.int64))
        return self.node(
            "Transpose", [self.node("Reshape", [value, shape], f"{value}/split")], f"{value}/heads", perm=order
        )

    def attention(self, value: str, source: str, name: str, mask: str | None = None) -> str:
        """Multi-head attention of `value`, normalised, to `source`, or to itself where that is the same."""
        query, key, content = self.projections(value, source, name)
        scores = self.node("MatMul", [self.heads(query, [0, 2, 1, 3]), self.heads(key, [0, 2, 3, 1])], f"{name}/scores")
        scale = self.constant("attention_scale", np.float32(1.0 / math.sqrt(HEAD_WIDTH)))
        scores = self.node("Mul", [scores, scale], f"{name}/scaled")
        if mask is not None:
            scores = self.node("Add", [scores, mask], f"{name}/masked")
        shares = self.node("Softmax", [scores], f"{name}/shares", axis=-1)
        mixed = self.node("MatMul", [shares, self.heads(content, [0, 2, 1, 3])], f"{name}/mixed")
        back = self.node("Transpose", [mixed], f"{name}/by_position", perm=[0, 2, 1, 3])
        join = self.constant("join_heads", np.array([0, 0, self.width], np.int64))
        joined = self.node("Reshape", [back, join], f"{name}/joined")
        return self.linear(joined, f"{name}/linear_{1 if value == source else 2}", f"{name}/out")

    def projections(self, value: str, source: str, name: str) -> tuple[str, str, str]:
        """Query, key and value: the file has them side by side in one matrix, or in two where the sources differ."""
        parts = [slice(start, start + self.width) for start in range(0, 3 * self.width, self.width)]
        names = [f"{name}/{what}" for what in ("query", "key", "value")]
        places = [(f"{name}/linear_0", part) for part in parts]
        if value != source:
            places = [places[0], *((f"{name}/linear_1", part) for part in parts[:2])]
        query, key, content = (
            self.linear(origin, place, output, part)
            for origin, (place, part), output in zip((value, source, source), places, names, strict=True)
        )
        return query, key, content

    def residual(self, value: str, change: str, name: str) -> str:
        """A change added to what it changes."""
        return self.node("Add", [value, change], f"{name}/residual")

    def feed_forward(self, value: str, name: str) -> str:
        """The two linear layers with their normalization and residual."""
        normalized = self.normalized(value, f"{name}/layer_norm")
        wide = self.linear(normalized, f"{name}/linear_0", f"{name}/wide")
        active = self.node("Gelu", [wide], f"{name}/gelu")
        return self.residual(value, self.linear(active, f"{name}/linear_1", f"{name}/narrow"), name)

    def self_attention(self, value: str, name: str, mask: str | None = None) -> str:
        """Attention to itself with its normalization and residual; `mask` is added to the scores."""
        normalized = self.normalized(value, f"{name}/layer_norm")
        return self.residual(value, self.attention(normalized, normalized, name, mask), name)

    def positions(self, value: str, length: str) -> str:
        """`value` with the encodings of its positions, of which there are `length`, added."""
        table = self.constant("positions", self.stored("position_encodings/encodings"))
        zero = self.constant("zero", np.array([0], np.int64))
        return self.node("Add", [value, self.node("Slice", [table, zero, length, zero], "positions/used")], "embedded")
