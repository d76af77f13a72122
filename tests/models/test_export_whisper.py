"""Both graphs against the same networks written in NumPy, narrower than the real ones, with weights made up here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import erf, softmax

from lowrank_onnx import passes
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.types import Array
from models.export_whisper import MELS, build_decoder, build_encoder
from models.transformer_writer import EPSILON, HEAD_WIDTH, Tensors

WIDTH, LAYERS, VOCABULARY = 2 * HEAD_WIDTH, 2, 40


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/conv1/weight": (WIDTH, MELS, 3),
        "encoder/conv1/bias": (WIDTH,),
        "encoder/conv2/weight": (WIDTH, WIDTH, 3),
        "encoder/conv2/bias": (WIDTH,),
        "encoder/position_encodings/encodings": (20, WIDTH),
        "decoder/position_encodings/encodings": (12, WIDTH),
        "decoder/embeddings/weight": (VOCABULARY, WIDTH),
    }

    def linear(name: str, before: int, after: int) -> None:
        shapes.update({f"{name}/weight": (after, before), f"{name}/bias": (after,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}/gamma": (WIDTH,), f"{name}/beta": (WIDTH,)})

    for root in ("encoder", "decoder"):
        norm(f"{root}/layer_norm")
        for index in range(LAYERS):
            name = f"{root}/layer_{index}"
            linear(f"{name}/self_attention/linear_0", WIDTH, 3 * WIDTH)
            linear(f"{name}/self_attention/linear_1", WIDTH, WIDTH)
            linear(f"{name}/ffn/linear_0", WIDTH, 4 * WIDTH)
            linear(f"{name}/ffn/linear_1", 4 * WIDTH, WIDTH)
            norm(f"{name}/self_attention/layer_norm")
            norm(f"{name}/ffn/layer_norm")
            if root == "decoder":
                linear(f"{name}/attention/linear_0", WIDTH, WIDTH)
                linear(f"{name}/attention/linear_1", WIDTH, 2 * WIDTH)
                linear(f"{name}/attention/linear_2", WIDTH, WIDTH)
                norm(f"{name}/attention/layer_norm")
    return {name: (0.15 * generator.standard_normal(shape)).astype(np.float16) for name, shape in shapes.items()}


def linear(tensors: Tensors, x: Array, name: str) -> Array:
    weight, bias = (tensors[f"{name}/{part}"].astype(np.float64) for part in ("weight", "bias"))
    return np.asarray(x @ weight.T + bias)


def norm(tensors: Tensors, x: Array, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return np.asarray(scaled * tensors[f"{name}/gamma"].astype(np.float64) + tensors[f"{name}/beta"])


def gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1.0 + erf(x / math.sqrt(2.0))))


def attend(query: Array, key: Array, value: Array, *, causal: bool = False) -> Array:
    """One sample: (length, width) each; head by head."""
    parts = []
    for start in range(0, WIDTH, HEAD_WIDTH):
        columns = slice(start, start + HEAD_WIDTH)
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(HEAD_WIDTH)
        if causal:
            scores = np.where(np.tri(*scores.shape) > 0, scores, -np.inf)
        parts.append(softmax(scores, axis=-1) @ value[:, columns])
    return np.concatenate(parts, axis=1)


def layer(tensors: Tensors, x: Array, name: str, states: Array | None) -> Array:
    inner = norm(tensors, x, f"{name}/self_attention/layer_norm")
    q, k, v = np.split(linear(tensors, inner, f"{name}/self_attention/linear_0"), 3, axis=1)
    x = x + linear(tensors, attend(q, k, v, causal=states is not None), f"{name}/self_attention/linear_1")
    if states is not None:
        q = linear(tensors, norm(tensors, x, f"{name}/attention/layer_norm"), f"{name}/attention/linear_0")
        k, v = np.split(linear(tensors, states, f"{name}/attention/linear_1"), 2, axis=1)
        x = x + linear(tensors, attend(q, k, v), f"{name}/attention/linear_2")
    wide = linear(tensors, norm(tensors, x, f"{name}/ffn/layer_norm"), f"{name}/ffn/linear_0")
    return np.asarray(x + linear(tensors, gelu(wide), f"{name}/ffn/linear_1"))


def convolve(tensors: Tensors, x: Array, name: str, stride: int) -> Array:
    """(channels, frames)."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)[:, ::stride]
    weight, bias = (tensors[f"encoder/{name}/{part}"].astype(np.float64) for part in ("weight", "bias"))
    return np.asarray(np.einsum("ock,cfk->of", weight, windows) + bias[:, None])


def encode(tensors: Tensors, features: Array) -> Array:
    x = gelu(convolve(tensors, gelu(convolve(tensors, features, "conv1", 1)), "conv2", 2)).T
    x = x + tensors["encoder/position_encodings/encodings"][: len(x)].astype(np.float64)
    for index in range(LAYERS):
        x = layer(tensors, x, f"encoder/layer_{index}", None)
    return norm(tensors, x, "encoder/layer_norm")


def decode(tensors: Tensors, tokens: Array, states: Array) -> Array:
    words = tensors["decoder/embeddings/weight"].astype(np.float64)
    x = words[tokens] + tensors["decoder/position_encodings/encodings"][: len(tokens)]
    for index in range(LAYERS):
        x = layer(tensors, x, f"decoder/layer_{index}", states)
    return np.asarray(norm(tensors, x, "decoder/layer_norm") @ words.T)


@pytest.mark.parametrize(("batch", "frames"), [(1, 6), (2, 40)])
def test_the_graph_computes_the_encoder(tensors: Tensors, batch: int, frames: int) -> None:
    features = np.random.default_rng(frames).standard_normal((batch, MELS, frames)).astype(np.float32)
    actual = open_session(build_encoder(tensors).SerializeToString()).run({"features": features})["states"]
    expected = np.stack([encode(tensors, sample.astype(np.float64)) for sample in features])
    assert actual.shape == (batch, frames // 2, WIDTH)
    assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 12)])
def test_the_graph_computes_the_decoder(tensors: Tensors, batch: int, length: int) -> None:
    generator = np.random.default_rng(length)
    tokens = generator.integers(VOCABULARY, size=(batch, length))
    states = generator.standard_normal((batch, 7, WIDTH)).astype(np.float32)
    session = open_session(build_decoder(tensors).SerializeToString())
    actual = session.run({"tokens": tokens, "states": states})["logits"]
    expected = np.stack([decode(tensors, *pair) for pair in zip(tokens, states.astype(np.float64), strict=True)])
    assert actual.shape == (batch, length, VOCABULARY)
    assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)


def test_every_weight_is_a_site_of_its_own(tensors: Tensors) -> None:
    encoder, _ = passes.find_sites(build_encoder(tensors), op_types=("MatMul", "Conv"))
    assert len(encoder) == 2 + 6 * LAYERS
    decoder, _ = passes.find_sites(build_decoder(tensors), op_types=("MatMul",))
    assert len(decoder) == 1 + 10 * LAYERS
