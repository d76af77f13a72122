"""Real models from the field, fetched by ``models/fetch.py``: an exact rewrite must not change what they compute.

At full rank every weight that the rules cover is rewritten and nothing else happens, so that any difference is the
rewriting's. Run with ``pytest -m zoo``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx import Alpha, CompressionResult, Config, FixedRank, KeepParams, compress
from lowrank_onnx.types import Array
from models.fetch import fetch_model

pytestmark = pytest.mark.zoo

FULL = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd")
SMALL = Config(budget=KeepParams(0.6), objective="size")


def speech(samples: int, feeds: int) -> list[Array]:
    """A voiced sound: harmonics of a gliding pitch, louder and softer in turn."""
    time = np.arange(samples * feeds) / 16_000
    pitch = 2 * np.pi * (120 * time + 20 * np.sin(time))
    wave = sum(np.sin(k * pitch) / k for k in range(1, 12)) * (0.3 + 0.2 * np.sin(7 * time))
    return [chunk[None].astype(np.float32) for chunk in np.split(0.3 * wave, feeds)]


def strokes(height: int, width: int) -> Array:
    """Dark strokes on light paper, in the range -1 to 1 that the text models take."""
    paper = np.ones((1, 3, height, width), np.float32)
    generator = np.random.default_rng(0)
    for left in range(8, width - 12, 14):
        top = int(generator.integers(height // 8, height // 3))
        paper[:, :, top : height - top, left : left + 3] = -1.0
        paper[:, :, height // 2 : height // 2 + 3, left : left + 9] = -0.8
    return paper


def feeds_of(name: str) -> list[Mapping[str, Array]]:
    rate = np.array(16_000, np.int64)
    state = np.zeros((2, 1, 128), np.float32)
    cell = np.zeros((1, 1, 128), np.float32)
    waves = speech(576, 8)
    if name in ("silero-vad", "silero-vad-16k-op15", "silero-vad-op18-ifless"):
        return [{"input": wave, "state": state, "sr": rate} for wave in waves]
    if name in ("silero-vad-half", "silero-vad-openvino-16k"):
        return [{"input": wave, "state": state} for wave in waves]
    if name == "silero-vad-16k-sequence":
        return [{"input": np.concatenate(waves), "h": cell, "c": cell}]
    if name == "magika":
        text = Path(__file__).read_bytes()[:2048].ljust(2048, b"\n")
        return [{"bytes": np.frombuffer(text, np.uint8).astype(np.int32)[None]}]
    if name == "minilm-int8":
        ids = np.random.default_rng(0).integers(1000, 20_000, (4, 24))
        return [{"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}]
    sizes = {"ppocr-v4-recogniser": (48, 320), "ppocr-v4-detector": (320, 320), "ppocr-v2-orientation": (48, 192)}
    return [{"x": strokes(*sizes[name])}]


REWRITTEN = {
    "ppocr-v4-recogniser": {"Conv": 24, "MatMul": 9},
    "ppocr-v4-detector": {"Conv": 47, "ConvTranspose": 2},  # of 48, two that meet become one
    "ppocr-v2-orientation": {"Conv": 42, "MatMul": 1},
    "silero-vad": {"Conv": 10},
    "silero-vad-16k-op15": {"Conv": 5},
    "silero-vad-16k-sequence": {"Conv": 5},
    "silero-vad-half": {"Conv": 5},
    "silero-vad-op18-ifless": {"Conv": 10, "Gemm": 4},
    "silero-vad-openvino-16k": {"Conv": 5},
    "magika": {"MatMul": 2, "Conv": 1},
}
"""The weights that the rules cover, counted by operator."""


def exact(name: str, output: Path) -> CompressionResult:
    return compress(fetch_model(name), FULL, feeds=feeds_of(name), output=output)


@pytest.mark.parametrize("name", REWRITTEN)
def test_full_rank_changes_no_output(name: str, tmp_path: Path) -> None:
    result = exact(name, tmp_path / "full.onnx")
    assert result.status == "written", result.message
    assert Counter(site.op_type for site in result.sites) == REWRITTEN[name]
    assert all(site.rank == min(site.in_features, site.out_features) for site in result.sites)
    assert all(site.relative_error is not None and site.relative_error < 1e-4 for site in result.sites)
    assert result.verdict is not None
    assert result.verdict.outputs
    for output in result.verdict.outputs:
        assert not output.problems
        # Probabilities of a detector that sees next to nothing are tiny: relative error means nothing for them.
        assert output.error < 1e-4 or (output.max_abs is not None and output.max_abs < 2e-6)
    assert all(skipped.reason for skipped in result.skipped)


def test_weights_behind_their_scales_are_decoded(tmp_path: Path) -> None:
    result = exact("minilm-int8", tmp_path / "full.onnx")
    assert result.status == "written", result.message
    assert Counter(site.op_type for site in result.sites) == {"MatMul": 36, "Gather": 3}
    assert result.notes == ("38 weights stored as int8 behind Cast -> Mul: replaced by float32 factors",)
    assert Counter(skipped.reason for skipped in result.skipped if skipped.op_type == "MatMul") == {
        "both inputs are activations": 12
    }
    assert result.verdict is not None
    assert result.verdict.relative_error < 1e-4


def test_scaled_integers_stay_where_factors_are_not_smaller_in_bytes(tmp_path: Path) -> None:
    config = Config(budget=FixedRank(64), objective="size", validate=False)
    result = compress(fetch_model("minilm-int8"), config, output=tmp_path / "small.onnx")
    taken = {(site.in_features, site.out_features) for site in result.sites if site.rank is not None}
    assert taken == {(384, 1536), (1536, 384), (30522, 384)}
    assert result.after is not None
    assert result.after.file_bytes < result.before.file_bytes


@pytest.mark.parametrize("name", ["ppocr-v4-recogniser", "magika", "silero-vad"])
def test_compressed_models_run_and_are_smaller(name: str, tmp_path: Path) -> None:
    result = compress(fetch_model(name), SMALL, feeds=feeds_of(name), output=tmp_path / "small.onnx")
    assert result.status == "written", result.message
    assert result.after is not None
    assert result.after.site_parameters <= 0.6 * result.before.site_parameters
    assert result.after.file_bytes < result.before.file_bytes
