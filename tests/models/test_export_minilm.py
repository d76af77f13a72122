"""The encoder's graph against the same encoder written in NumPy, with weights made up here."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf, softmax

from lowrank_onnx import passes
from lowrank_onnx.evaluate import Session, open_session
from lowrank_onnx.types import Array
from models.export_minilm import EPSILON, HEADS, LAYERS, WIDTH, Tensors, build_minilm, read_safetensors

VOCABULARY, POSITIONS, INNER = 50, 16, 4 * WIDTH


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings"]
    for index in range(LAYERS):
        name = f"encoder.layer.{index}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= {f"{name}.{part}.weight": (WIDTH, WIDTH), f"{name}.{part}.bias": (WIDTH,)}
        found |= {f"{name}.intermediate.dense.weight": (INNER, WIDTH), f"{name}.intermediate.dense.bias": (INNER,)}
        found |= {f"{name}.output.dense.weight": (WIDTH, INNER), f"{name}.output.dense.bias": (WIDTH,)}
        norms += [f"{name}.attention.output", f"{name}.output"]
    for name in norms:
        found |= {f"{name}.LayerNorm.weight": (WIDTH,), f"{name}.LayerNorm.bias": (WIDTH,)}
    return found


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    return {name: (0.1 * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def session(tensors: Tensors) -> Session:
    return open_session(build_minilm(tensors).SerializeToString())


def reference(tensors: Tensors, ids: Array, mask: Array, segments: Array) -> NDArray[np.float64]:
    def linear(x: Array, name: str) -> Array:
        result: Array = x @ tensors[f"{name}.weight"].T.astype(np.float64) + tensors[f"{name}.bias"]
        return result

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        result: Array = scaled * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]
        return result

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)

    tables = {name: tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = tables["word"][ids].astype(np.float64) + tables["position"][: ids.shape[1]] + tables["token_type"][segments]
    x = norm(x, "embeddings")
    for index in range(LAYERS):
        name = f"encoder.layer.{index}"
        query, key, value = (heads(linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(WIDTH / HEADS)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        mixed = (softmax(scores, axis=-1) @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(linear(mixed, f"{name}.attention.output.dense") + x, f"{name}.attention.output")
        wide = linear(x, f"{name}.intermediate.dense")
        wide = wide * 0.5 * (1.0 + erf(wide / math.sqrt(2.0)))
        x = norm(linear(wide, f"{name}.output.dense") + x, f"{name}.output")
    return np.asarray(x, np.float64)


@pytest.mark.parametrize(("batch", "sequence", "attended"), [(1, 1, 1), (3, 7, 7), (2, 16, 5)])
def test_the_graph_computes_the_encoder(
    tensors: Tensors, session: Session, batch: int, sequence: int, attended: int
) -> None:
    generator = np.random.default_rng(sequence)
    ids = generator.integers(VOCABULARY, size=(batch, sequence))
    segments = generator.integers(2, size=(batch, sequence))
    mask = (np.arange(sequence) < attended).astype(np.int64) * np.ones((batch, 1), np.int64)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    actual = session.run(feed)["last_hidden_state"]
    expected = reference(tensors, ids, mask, segments)
    assert actual.shape == (batch, sequence, WIDTH)
    assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)


def test_all_36_weights_are_sites(tensors: Tensors) -> None:
    sites, _ = passes.find_sites(build_minilm(tensors), op_types=("MatMul",))
    assert len(sites) == 36
    assert {(site.shape.in_features, site.shape.out_features) for site in sites} == {
        (WIDTH, WIDTH),
        (WIDTH, INNER),
        (INNER, WIDTH),
    }


def write_safetensors(path: Path, header: dict[str, object], content: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_reads_float32_tensors_and_leaves_others_out(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    header = {
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
    }
    read = read_safetensors(write_safetensors(tmp_path / "a", header, bytes(8) + values.tobytes()))
    assert list(read) == ["a"]
    assert read["a"].dtype == np.float32
    assert np.array_equal(read["a"], values)


@pytest.mark.parametrize(("offsets", "shape"), [([0, 32], [2, 4]), ([8, 4], [1]), ([0, 8], [3]), ([-4, 0], [1])])
def test_a_tensor_that_does_not_fit_is_refused(tmp_path: Path, offsets: list[int], shape: list[int]) -> None:
    path = write_safetensors(
        tmp_path / "a", {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(16)
    )
    with pytest.raises(ValueError, match="tensor 'a' doesn't fit its place"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 100) + b"{}"])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is longer than the file"):
        read_safetensors(path)
