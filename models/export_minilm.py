"""Write MiniLM-L6, a sentence encoder, as an ONNX model: ``python -m models.export_minilm [OUTPUT]``.

The weights are those of ``sentence-transformers/all-MiniLM-L6-v2``, fetched by ``models/fetch.py``. The graph is
written node by node after the BERT encoder (Devlin et al., arXiv 1810.04805), so that no framework is needed: every
weight matrix is an initializer (in, out) of a MatMul.

Inputs ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 (batch, sequence); output ``last_hidden_state``,
float32 (batch, sequence, 384).
"""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.fetch import fetch_model, find_cache
from models.graph_writer import GraphWriter, write_model

LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12
"""Of the layer normalizations, from the model's configuration."""

MASKED = -10_000.0
"""Added to the attention scores of masked positions, as in the original implementation."""

Tensors = dict[str, NDArray[np.float32]]


def read_safetensors(path: Path) -> Tensors:
    """The float32 tensors of a safetensors file, by name; others are left out.

    The file is a little-endian uint64 with the header's length, a JSON header, and the tensors' bytes.

    Raises
    ------
    ValueError
        If the header or a tensor doesn't fit in the file.
    """
    content = path.read_bytes()
    length = struct.unpack_from("<Q", content)[0] if len(content) >= 8 else len(content)
    if 8 + length > len(content):
        raise ValueError(f"{path}: a header of {length} bytes is longer than the file")
    header: dict[str, dict[str, Any]] = json.loads(content[8 : 8 + length])
    tensors: Tensors = {}
    for name, entry in header.items():
        if entry.get("dtype") != "F32":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        count = math.prod(entry["shape"])
        if not 8 + length <= start <= end <= len(content) or end - start != 4 * count:
            raise ValueError(f"{path}: tensor {name!r} doesn't fit its place")
        values = np.frombuffer(content, "<f4", count=count, offset=start)
        tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


class _Encoder(GraphWriter):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors

    def stored(self, name: str) -> str:
        """A tensor of the file as it is."""
        return self.constant(name, self.tensors[name])

    def linear(self, value: str, name: str, output: str) -> str:
        """``value @ W + b``: the file holds W as (out, in)."""
        weight = self.constant(f"{name}.weight", self.tensors[f"{name}.weight"].T)
        product = self.node("MatMul", [value, weight], f"{output}/MatMul")
        return self.node("Add", [product, self.stored(f"{name}.bias")], output)

    def normalized(self, value: str, name: str, output: str) -> str:
        """Layer normalization over the last axis."""
        scale, bias = self.stored(f"{name}.weight"), self.stored(f"{name}.bias")
        return self.node("LayerNormalization", [value, scale, bias], output, axis=-1, epsilon=EPSILON)

    def embeddings(self) -> str:
        """The sum of word, position and segment embeddings, normalized."""
        prefix = "embeddings"
        words = self.node(
            "Gather", [self.stored(f"{prefix}.word_embeddings.weight"), "input_ids"], "embeddings/words", axis=0
        )
        segments = self.node(
            "Gather", [self.stored(f"{prefix}.token_type_embeddings.weight"), "token_type_ids"], "embeddings/segments"
        )
        length = self.node("Shape", ["input_ids"], "embeddings/length", start=1, end=2)
        zero = self.constant("zero", np.array([0], np.int64))
        table = self.stored(f"{prefix}.position_embeddings.weight")
        positions = self.node("Slice", [table, zero, length, zero], "embeddings/positions")
        summed = self.node("Add", [words, segments], "embeddings/words_segments")
        summed = self.node("Add", [summed, positions], "embeddings/sum")
        return self.normalized(summed, f"{prefix}.LayerNorm", "embeddings/output")

    def mask(self) -> str:
        """What is added to attention scores: 0 where attended, `MASKED` where not; (batch, 1, 1, sequence)."""
        attended = self.node("Cast", ["attention_mask"], "mask/attended", to=TensorProto.FLOAT)
        hidden = self.node("Sub", [self.constant("one", np.float32(1.0)), attended], "mask/hidden")
        scores = self.node("Mul", [hidden, self.constant("masked", np.float32(MASKED))], "mask/scores")
        return self.node("Unsqueeze", [scores, self.constant("head_axes", np.array([1, 2], np.int64))], "mask/output")

    def heads(self, value: str, name: str, output: str, order: list[int]) -> str:
        """A projection, cut into heads; `order` of (batch, sequence, head, feature)."""
        shape = self.constant("split_heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        projected = self.linear(value, name, f"{output}/projection")
        split = self.node("Reshape", [projected, shape], f"{output}/split")
        return self.node("Transpose", [split], output, perm=order)

    def attention(self, value: str, mask: str, name: str, output: str) -> str:
        """Multi-head self-attention, without its output projection."""
        query = self.heads(value, f"{name}.query", f"{output}/query", [0, 2, 1, 3])
        key = self.heads(value, f"{name}.key", f"{output}/key", [0, 2, 3, 1])
        content = self.heads(value, f"{name}.value", f"{output}/value", [0, 2, 1, 3])
        scores = self.node("MatMul", [query, key], f"{output}/scores")
        scale = self.constant("attention_scale", np.float32(1.0 / math.sqrt(WIDTH / HEADS)))
        scaled = self.node("Mul", [scores, scale], f"{output}/scaled")
        masked = self.node("Add", [scaled, mask], f"{output}/masked")
        shares = self.node("Softmax", [masked], f"{output}/shares", axis=-1)
        mixed = self.node("MatMul", [shares, content], f"{output}/mixed")
        back = self.node("Transpose", [mixed], f"{output}/by_position", perm=[0, 2, 1, 3])
        return self.node("Reshape", [back, self.constant("join_heads", np.array([0, 0, WIDTH], np.int64))], output)

    def layer(self, value: str, mask: str, index: int, output: str) -> str:
        """One encoder layer: attention and feed-forward, each with its residual and normalization."""
        name, place = f"encoder.layer.{index}", f"layer.{index}"
        attended = self.attention(value, mask, f"{name}.attention.self", f"{place}/attention")
        projected = self.linear(attended, f"{name}.attention.output.dense", f"{place}/attention_output")
        summed = self.node("Add", [projected, value], f"{place}/attention_residual")
        middle = self.normalized(summed, f"{name}.attention.output.LayerNorm", f"{place}/middle")
        widened = self.linear(middle, f"{name}.intermediate.dense", f"{place}/intermediate")
        active = self.node("Gelu", [widened], f"{place}/gelu")
        narrowed = self.linear(active, f"{name}.output.dense", f"{place}/narrowed")
        total = self.node("Add", [narrowed, middle], f"{place}/residual")
        return self.normalized(total, f"{name}.output.LayerNorm", output)


def build_minilm(tensors: Tensors) -> onnx.ModelProto:
    """The encoder as an ONNX model, from its tensors by their names in the file."""
    encoder = _Encoder(tensors)
    value, mask = encoder.embeddings(), encoder.mask()
    for index in range(LAYERS):
        name = "last_hidden_state" if index == LAYERS - 1 else f"layer.{index}/output"
        value = encoder.layer(value, mask, index, name)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    return encoder.model("minilm_l6", inputs, [output])


def export_minilm(output: Path | None = None) -> Path:
    """Write the model, into the cache of fetched models where no other place is given, and return its path."""
    model = build_minilm(read_safetensors(fetch_model("minilm-weights")))
    return write_model(model, output or find_cache() / "minilm-l6.onnx")


if __name__ == "__main__":
    print(export_minilm(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
