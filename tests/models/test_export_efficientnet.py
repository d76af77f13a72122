"""The classifier's graph against the same classifier written in NumPy, with weights made up here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank_onnx.evaluate import open_session
from models.export_efficientnet import EPSILON, IMAGE_SIZE, build_efficientnet, same_padding
from models.torch_file import Tensors

BLOCKS = (
    # channels out, kernel, stride, blocks: the paper's table, scaled as Lite2 is
    *((16, 3, 1, 1), (24, 3, 2, 3), (48, 5, 2, 3), (88, 3, 2, 4), (120, 5, 1, 4), (208, 5, 2, 5), (352, 3, 1, 1)),
)
STEM, HEAD = 32, 1280


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Channels in, inside and out, kernel and stride of each block."""
    made: list[tuple[int, int, int, int, int]] = []
    channels = STEM
    for out, kernel, stride, count in BLOCKS:
        for index in range(count):
            made.append((channels, channels * (1 if len(made) == 0 else 6), out, kernel, stride if index == 0 else 1))
            channels = out
    return made


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    made: Tensors = {}

    def add(name: str, norm: str, out: int, channels: int, kernel: int) -> None:
        scale = np.sqrt(2.0 / (channels * kernel**2)).astype(np.float32)
        made[f"{name}.weight"] = scale * generator.standard_normal((out, channels, kernel, kernel), np.float32)
        for part in ("weight", "running_var"):
            made[f"{norm}.{part}"] = generator.uniform(0.5, 1.5, out).astype(np.float32)
        for part in ("bias", "running_mean"):
            made[f"{norm}.{part}"] = 0.2 * generator.standard_normal(out, np.float32)

    add("_conv_stem", "_bn0", STEM, 3, 3)
    for index, (before, inside, after, kernel, _) in enumerate(blocks()):
        name = f"_blocks.{index}"
        if inside != before:
            add(f"{name}._expand_conv", f"{name}._bn0", inside, before, 1)
        add(f"{name}._depthwise_conv", f"{name}._bn1", inside, 1, kernel)
        add(f"{name}._project_conv", f"{name}._bn2", after, inside, 1)
    add("_conv_head", "_bn1", HEAD, BLOCKS[-1][0], 1)
    made["_fc.weight"] = 0.03 * generator.standard_normal((1000, HEAD), np.float32)
    made["_fc.bias"] = 0.03 * generator.standard_normal(1000, np.float32)
    return made


Floats = NDArray[np.floating[Any]]


def convolve(x: Floats, weight: Floats, stride: int) -> Floats:
    """Dense, or by channel where the weight has one channel in; size ceil(size / stride), odd padding behind."""
    size, kernel = x.shape[-1], weight.shape[-1]
    result = math.ceil(size / stride)
    total = max(0, (result - 1) * stride + kernel - size)
    padded = np.pad(x, ((0, 0), *(((total // 2, total - total // 2),) * 2)))
    out = np.zeros((len(weight), result, result))
    for row in range(kernel):
        for column in range(kernel):
            part = padded[:, row : row + stride * result : stride, column : column + stride * result : stride]
            taps = weight[:, :, row, column]
            out += part * taps[:, :, None] if taps.shape[1] == 1 else np.tensordot(taps, part, 1)
    return out


def reference(tensors: Tensors, x: Floats) -> Floats:
    def apply(x: Floats, name: str, norm: str, stride: int = 1) -> Floats:
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (tensors[f"{norm}.{part}"].astype(np.float64)[:, None, None] for part in parts)
        y = convolve(x, tensors[f"{name}.weight"].astype(np.float64), stride)
        return np.asarray((y - mean) / np.sqrt(variance + EPSILON) * scale + shift)

    x = np.clip(apply(x, "_conv_stem", "_bn0", 2), 0, 6)
    for index, (before, inside, after, _, stride) in enumerate(blocks()):
        name, start = f"_blocks.{index}", x
        if inside != before:
            x = np.clip(apply(x, f"{name}._expand_conv", f"{name}._bn0"), 0, 6)
        x = np.clip(apply(x, f"{name}._depthwise_conv", f"{name}._bn1", stride), 0, 6)
        x = apply(x, f"{name}._project_conv", f"{name}._bn2")
        x = x + start if stride == 1 and before == after else x
    x = np.clip(apply(x, "_conv_head", "_bn1"), 0, 6).mean((1, 2))
    return np.asarray(tensors["_fc.weight"] @ x + tensors["_fc.bias"])


def test_the_graph_computes_the_classifier(tensors: Tensors) -> None:
    image = np.random.default_rng(1).standard_normal((1, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    actual = open_session(build_efficientnet(tensors).SerializeToString()).run({"image": image})["logits"]
    expected = reference(tensors, image[0].astype(np.float64))
    assert actual.shape == (1, 1000)
    assert np.linalg.norm(actual[0] - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "result"),
    [(260, 3, 2, [0, 0, 1, 1], 130), (65, 5, 2, [2, 2, 2, 2], 33), (9, 1, 1, [0, 0, 0, 0], 9), (5, 1, 2, [0] * 4, 3)],
)
def test_padding_is_that_of_the_trained_model(
    size: int, kernel: int, stride: int, pads: list[int], result: int
) -> None:
    assert same_padding(size, kernel, stride) == (pads, result)
