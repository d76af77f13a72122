"""Write Whisper-base, a recogniser of speech, as two ONNX models: ``python -m models.export_whisper [DIRECTORY]``.

The weights are those of a CTranslate2 conversion in float16, fetched by ``models/fetch.py``. The graphs are written
node by node after the paper (Radford et al., arXiv 2212.04356), in float32: a transformer encoder over a spectrogram,
and a decoder of text that attends to the encoder's states. Every weight matrix is an initializer (in, out) of a MatMul.

Encoder: input ``features``, float32 (batch, 80, frames), a log-mel spectrogram of at most 3000 frames; output
``states``, float32 (batch, frames / 2, 512). Decoder: inputs ``tokens``, int64 (batch, length), and ``states``; output
``logits``, float32 (batch, length, 51865), of the token that follows each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.ctranslate2_file import read_ctranslate2
from models.fetch import fetch_model, find_cache
from models.graph_writer import GraphWriter, write_model

HEAD_WIDTH, MELS = 64, 80
EPSILON = 1e-5
"""Of the layer normalizations."""

HIDDEN = -1e9
"""Added to the attention scores of tokens that come later."""

Tensors = Mapping[str, NDArray[Any]]


class _Transformer(GraphWriter):
    """What encoder and decoder share."""

    def __init__(self, tensors: Tensors, root: str) -> None:
        super().__init__()
        self.tensors, self.root = tensors, root
        self.width = self.stored("layer_norm/gamma").size
        self.layers = sum(name.endswith("/ffn/layer_norm/gamma") and name.startswith(root) for name in tensors)

    def stored(self, name: str) -> NDArray[np.float32]:
        return self.tensors[f"{self.root}/{name}"].astype(np.float32)

    def linear(self, value: str, name: str, output: str, part: slice = slice(None)) -> str:
        """``value @ W + b`` with some of the columns of W, which the file holds as (out, in)."""
        weight = self.constant(f"{output}.weight", self.stored(f"{name}/weight")[part].T)
        bias = self.constant(f"{output}.bias", self.stored(f"{name}/bias")[part])
        return self.node("Add", [self.node("MatMul", [value, weight], f"{output}.product"), bias], output)

    def normalized(self, value: str, name: str) -> str:
        scale, shift = (self.constant(f"{name}/{part}", self.stored(f"{name}/{part}")) for part in ("gamma", "beta"))
        return self.node("LayerNormalization", [value, scale, shift], f"{name}/output", axis=-1, epsilon=EPSILON)

    def heads(self, value: str, order: Sequence[int]) -> str:
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
        return self.node("Add", [value, change], f"{name}/residual")

    def feed_forward(self, value: str, name: str) -> str:
        normalized = self.normalized(value, f"{name}/layer_norm")
        wide = self.linear(normalized, f"{name}/linear_0", f"{name}/wide")
        active = self.node("Gelu", [wide], f"{name}/gelu")
        return self.residual(value, self.linear(active, f"{name}/linear_1", f"{name}/narrow"), name)

    def self_attention(self, value: str, name: str, mask: str | None = None) -> str:
        normalized = self.normalized(value, f"{name}/layer_norm")
        return self.residual(value, self.attention(normalized, normalized, name, mask), name)

    def positions(self, value: str, length: str) -> str:
        """`value` with the encodings of its positions, of which there are `length`, added."""
        table = self.constant("positions", self.stored("position_encodings/encodings"))
        zero = self.constant("zero", np.array([0], np.int64))
        return self.node("Add", [value, self.node("Slice", [table, zero, length, zero], "positions/used")], "embedded")


def build_encoder(tensors: Tensors) -> onnx.ModelProto:
    """The encoder, from the variables by their names in the file."""
    writer = _Transformer(tensors, "encoder")
    value = "features"
    for name, stride in (("conv1", 1), ("conv2", 2)):
        inputs = [
            value,
            *(writer.constant(f"{name}.{part}", writer.stored(f"{name}/{part}")) for part in ("weight", "bias")),
        ]
        value = writer.node("Conv", inputs, name, kernel_shape=[3], pads=[1, 1], strides=[stride])
        value = writer.node("Gelu", [value], f"{name}/gelu")
    value = writer.node("Transpose", [value], "by_frame", perm=[0, 2, 1])
    value = writer.positions(value, writer.node("Shape", [value], "length", start=1, end=2))
    for index in range(writer.layers):
        value = writer.self_attention(value, f"layer_{index}/self_attention")
        value = writer.feed_forward(value, f"layer_{index}/ffn")
    writer.node("Identity", [writer.normalized(value, "layer_norm")], "states")
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", MELS, "frames"])
    states = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "positions", writer.width])
    return writer.model("whisper_encoder", [features], [states])


def build_decoder(tensors: Tensors) -> onnx.ModelProto:
    """The decoder, from the variables by their names in the file."""
    writer = _Transformer(tensors, "decoder")
    embeddings = writer.stored("embeddings/weight")
    value = writer.node("Gather", [writer.constant("embeddings", embeddings), "tokens"], "words", axis=0)
    length = writer.node("Shape", ["tokens"], "length", start=1, end=2)
    value, mask = writer.positions(value, length), _causal_mask(writer, length)
    for index in range(writer.layers):
        name = f"layer_{index}"
        value = writer.self_attention(value, f"{name}/self_attention", mask)
        query = writer.normalized(value, f"{name}/attention/layer_norm")
        attended = writer.attention(query, "states", f"{name}/attention")
        value = writer.residual(value, attended, f"{name}/attention")
        value = writer.feed_forward(value, f"{name}/ffn")
    head = writer.constant("head.weight", embeddings.T)
    writer.node("MatMul", [writer.normalized(value, "layer_norm"), head], "logits")
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    states = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "positions", writer.width])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", len(embeddings)])
    return writer.model("whisper_decoder", [tokens, states], [logits])


def _causal_mask(writer: GraphWriter, length: str) -> str:
    """(length, length): 0 up to the diagonal, `HIDDEN` above it."""
    shape = writer.node("Concat", [length, length], "mask/shape", axis=0)
    filled = writer.node(
        "ConstantOfShape", [shape], "mask/filled", value=helper.make_tensor("", TensorProto.FLOAT, [1], [HIDDEN])
    )
    return writer.node("Trilu", [filled, writer.constant("above", np.array(1, np.int64))], "mask/output", upper=1)


def read_whisper() -> dict[str, NDArray[Any]]:
    """The fetched weights, by name."""
    parts = [fetch_model(f"whisper-weights-{number}").read_bytes() for number in (1, 2)]
    return read_ctranslate2(b"".join(parts))


def export_whisper(directory: Path | None = None) -> tuple[Path, Path]:
    """Write encoder and decoder, into the cache of fetched models if nowhere else, and return their paths."""
    place, tensors = directory or find_cache(), read_whisper()
    encoder = write_model(build_encoder(tensors), place / "whisper-encoder.onnx")
    return encoder, write_model(build_decoder(tensors), place / "whisper-decoder.onnx")


if __name__ == "__main__":
    print(*export_whisper(Path(sys.argv[1]) if len(sys.argv) > 1 else None), sep="\n")
