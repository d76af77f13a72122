"""Write Whisper-base, a recogniser of speech, as two ONNX models: ``python -m models.export_whisper [DIRECTORY]``.

The weights are those of a CTranslate2 conversion in float16, fetched by ``models/fetch.py``. The graphs are written
node by node after the paper (Radford et al., arXiv 2212.04356), in float32: a transformer encoder over a spectrogram,
and a decoder of text that attends to the encoder's states. Every weight matrix is an initializer (in, out) of a MatMul.

Encoder: input ``features``, float32 (batch, 80, frames), a log-mel spectrogram of at most 3000 frames; output
``states``, float32 (batch, frames / 2, 512). Decoder: inputs ``tokens``, int64 (batch, length), and ``states``; output
``logits``, float32 (batch, length, 51865), of the token that follows each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.ctranslate2_file import read_ctranslate2
from models.fetch import fetch_model, find_cache
from models.graph_writer import GraphWriter, write_model
from models.transformer_writer import Tensors, Transformer

MELS = 80

HIDDEN = -1e9
"""Added to the attention scores of tokens that come later."""


def build_encoder(tensors: Tensors) -> onnx.ModelProto:
    """The encoder, from the variables by their names in the file."""
    writer = Transformer(tensors, "encoder")
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
    writer = Transformer(tensors, "decoder")
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
