"""Models in narrower types: compressed with the error that float32 has; and quantized after they were compressed."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.narrow_models import (
    Storage,
    compute_in_half,
    quantize_dynamically,
    quantize_statically,
    quantize_to_four_bits,
    store_narrow,
)
from lowrank_onnx import Config, FixedRank, compress
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.results import CompressionResult
from lowrank_onnx.types import Array
from models.export_minilm import export_minilm

MODELS = Path(__file__).parents[2] / "models"
RANK = Config(budget=FixedRank(24), objective="size", validate=False, op_types=("MatMul", "Gemm"))
EPSILON: dict[str, float] = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 127}
"""Half the spacing of values next to 1 or, for int8, two steps of the largest: what a weight is rounded by at most."""


@pytest.fixture(scope="module")
def images() -> list[Mapping[str, Array]]:
    data = np.load(MODELS / "fashion_mnist.npz")
    pixels = ((data["calib_image"][:64] / 255 - data["mean"]) / data["std"]).astype(np.float32)
    return [{"image": batch} for batch in np.split(pixels, 4)]


def tokens() -> list[Mapping[str, Array]]:
    generator = np.random.default_rng(0)
    found: list[Mapping[str, Array]] = []
    for _ in range(4):
        ids = generator.integers(1000, 20_000, (4, 24))
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return found


def outputs_of(model: bytes, feeds: list[Mapping[str, Array]]) -> Array:
    session = open_session(model)
    runs = [np.concatenate([y.reshape(-1) for y in session.run(feed).values()]) for feed in feeds]
    return np.concatenate(runs).astype(np.float64)


def distance(first: bytes, second: bytes, feeds: list[Mapping[str, Array]]) -> float:
    """The relative L2 difference of all outputs."""
    expected, found = outputs_of(first, feeds), outputs_of(second, feeds)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compressed(model: onnx.ModelProto, feeds: list[Mapping[str, Array]]) -> tuple[CompressionResult, float]:
    """The result, and how far its outputs are from the model's own."""
    result = compress(model, RANK, feeds=feeds)
    assert result.model is not None
    return result, distance(model.SerializeToString(), result.model.SerializeToString(), feeds)


def check_storage(model: onnx.ModelProto, storage: Storage, feeds: list[Mapping[str, Array]]) -> None:
    plain, expected = compressed(model, feeds)
    narrow, found = compressed(store_narrow(model, storage), feeds)
    ranks = {site.name: site.rank for site in plain.sites if site.rank is not None}
    assert {site.name: site.rank for site in narrow.sites if site.rank is not None} == ranks
    assert abs(found - expected) <= 4 * EPSILON[storage] * expected + 2 * EPSILON[storage]
    assert narrow.after is not None
    assert narrow.after.file_bytes < narrow.before.file_bytes
    assert any(f"stored as {storage} behind" in note for note in narrow.notes)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_stored_types_have_the_error_of_float32(storage: Storage, images: list[Mapping[str, Array]]) -> None:
    check_storage(onnx.load(MODELS / "fashion_vit.onnx"), storage, images)


@pytest.mark.zoo
@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_stored_types_of_minilm(storage: Storage) -> None:
    check_storage(onnx.load(export_minilm()), storage, tokens())


def test_a_model_that_computes_in_half_precision(images: list[Mapping[str, Array]]) -> None:
    model = onnx.load(MODELS / "fashion_vit.onnx")
    _, expected = compressed(model, images)
    half, found = compressed(compute_in_half(model), images)
    assert {site.dtype for site in half.sites if site.rank} == {"float16"}
    assert abs(found - expected) <= 0.02 * expected + 4 * EPSILON["float16"]


@pytest.fixture(scope="module")
def small(images: list[Mapping[str, Array]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compressed") / "small.onnx"
    config = Config(budget=FixedRank(48), objective="size", validate=False)
    assert compress(MODELS / "fashion_vit.onnx", config, feeds=images, output=target).status == "written"
    return target


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("quantizer", "operator", "limit"),
    [("dynamic", "MatMulInteger", 0.15), ("static", "DequantizeLinear", 0.35), ("four bits", "MatMulNBits", 0.35)],
)
def test_a_compressed_model_goes_through_onnxruntimes_quantizers(
    quantizer: str, operator: str, limit: float, small: Path, images: list[Mapping[str, Array]], tmp_path: Path
) -> None:
    target = tmp_path / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # both say that a model should be preprocessed first
        try:
            if quantizer == "dynamic":
                quantize_dynamically(small, target)
            elif quantizer == "static":
                quantize_statically(small, target, images[:2])
            else:
                quantize_to_four_bits(small, target)
        finally:
            logging.disable(logging.NOTSET)
    factored = sum(count for op_type, count in operators(small).items() if op_type == "MatMul")
    assert operators(target)[operator] >= 36
    assert factored > 36
    assert 0.0 < distance(small.read_bytes(), target.read_bytes(), images[2:]) < limit
    # The other order is refused, with reasons: nothing of a quantized model is touched.
    after = compress(target, Config(budget=FixedRank(8), objective="size", validate=False), output=tmp_path / "no.onnx")
    reasons = {skipped.reason for skipped in after.skipped if skipped.op_type in (operator, "MatMul", "Gemm")}
    expected = {
        "dynamic": "integer arithmetic on a quantized weight: factorize before quantizing",
        "static": "its input is quantized too (weight int8 behind DequantizeLinear): factorize before quantizing",
        "four bits": "operator MatMulNBits of domain 'com.microsoft' isn't covered",
    }
    assert expected[quantizer] in reasons
