"""The detector's graph against the same detector written in NumPy, layer by layer, with weights made up here."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import zoom

from lowrank_onnx import passes
from lowrank_onnx.evaluate import Session, open_session
from models.export_craft import EPSILON, build_craft
from models.torch_file import Tensors

Floats = NDArray[np.float64]

STAGES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 3, 64), (3, 64, 64), (7, 64, 128), (10, 128, 128)),
    ((14, 128, 256), (17, 256, 256)),
    ((20, 256, 256), (24, 256, 512), (27, 512, 512)),
    ((30, 512, 512), (34, 512, 512), (37, 512, 512)),
)
"""Index, channels in and out of the trunk's convolutions; normalization is the next layer, ReLU the one after it."""

POOLS = (6, 13, 23, 33)
LAST = (11, 18, 28, 38)
"""The last layer of each stage: a normalization, whose ReLU belongs to the next stage."""

JOINS = ((1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32))
HEAD = ((0, 32, 32, 3), (2, 32, 32, 3), (4, 32, 16, 3), (6, 16, 16, 1), (8, 16, 2, 1))


def convolutions() -> dict[str, tuple[int, int, int]]:
    found = {
        f"basenet.slice{stage}.{index}": (n_in, n_out, 3)
        for stage, layers in enumerate(STAGES, start=1)
        for index, n_in, n_out in layers
    }
    found |= {"basenet.slice5.1": (512, 1024, 3), "basenet.slice5.2": (1024, 1024, 1)}
    for number, (n_in, middle, n_out) in enumerate(JOINS, start=1):
        found |= {f"upconv{number}.conv.0": (n_in, middle, 1), f"upconv{number}.conv.3": (middle, n_out, 3)}
    return found | {f"conv_cls.{index}": (n_in, n_out, size) for index, n_in, n_out, size in HEAD}


def is_normalized(name: str) -> bool:
    return not name.startswith(("basenet.slice5", "conv_cls"))


def normalization_of(name: str) -> str:
    place, index = name.rsplit(".", 1)
    return f"{place}.{int(index) + 1}"


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    made: Tensors = {}
    for name, (n_in, n_out, size) in convolutions().items():
        scale = np.sqrt(2.0 / (n_in * size**2)).astype(np.float32)
        made[f"module.{name}.weight"] = scale * generator.standard_normal((n_out, n_in, size, size), np.float32)
        made[f"module.{name}.bias"] = 0.2 * generator.standard_normal(n_out, np.float32)
        if is_normalized(name):
            norm = f"module.{normalization_of(name)}"
            made[f"{norm}.weight"] = generator.uniform(0.5, 1.5, n_out).astype(np.float32)
            made[f"{norm}.bias"] = 0.2 * generator.standard_normal(n_out, np.float32)
            made[f"{norm}.running_mean"] = 0.2 * generator.standard_normal(n_out, np.float32)
            made[f"{norm}.running_var"] = generator.uniform(0.5, 1.5, n_out).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def session(tensors: Tensors) -> Session:
    return open_session(build_craft(tensors).SerializeToString())


def pad(x: Floats, size: int, value: float) -> Floats:
    return np.pad(x, ((0, 0), (size, size), (size, size)), constant_values=value)


def convolve(x: Floats, tensors: Tensors, name: str, dilation: int = 1) -> Floats:
    weight = tensors[f"module.{name}.weight"].astype(np.float64)
    reach = dilation * (weight.shape[-1] // 2)
    padded = pad(x, reach, 0.0)
    total = np.zeros((len(weight), *x.shape[1:]))
    for row in range(weight.shape[-1]):
        for column in range(weight.shape[-1]):
            top, left = dilation * row, dilation * column
            moved = padded[:, top : top + x.shape[1], left : left + x.shape[2]]
            total += np.einsum("oi,ihw->ohw", weight[:, :, row, column], moved)
    return np.asarray(total + tensors[f"module.{name}.bias"][:, None, None])


def normalize(x: Floats, tensors: Tensors, name: str) -> Floats:
    parts = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, variance = (tensors[f"module.{name}.{part}"][:, None, None] for part in parts)
    return np.asarray((x - mean) / np.sqrt(variance.astype(np.float64) + EPSILON) * scale + shift)


def pool(x: Floats, size: int, stride: int, padding: int) -> Floats:
    windows = np.lib.stride_tricks.sliding_window_view(pad(x, padding, -np.inf), (size, size), axis=(1, 2))
    return np.asarray(windows[:, ::stride, ::stride].max(axis=(-1, -2)))


def enlarge(x: Floats) -> Floats:
    return np.asarray(zoom(x, (1, 2, 2), order=1, mode="nearest", grid_mode=True))


def reference(tensors: Tensors, x: Floats) -> Floats:
    """As the framework runs it: a ReLU works in place, also on the tensor that the stage before has handed on."""
    kept: list[Floats] = []
    by_index = {index: f"basenet.slice{stage}.{index}" for stage, part in enumerate(STAGES, 1) for index, *_ in part}
    for layer in range(39):
        if layer in by_index:
            x = convolve(x, tensors, by_index[layer])
        elif layer in POOLS:
            x = pool(x, 2, 2, 0)
        elif layer - 1 in by_index:
            x = normalize(x, tensors, normalization_of(by_index[layer - 1]))
        else:
            np.maximum(x, 0.0, out=x)
        if layer in LAST:
            kept.append(x)
    x = convolve(pool(x, 3, 1, 1), tensors, "basenet.slice5.1", dilation=6)
    x = convolve(x, tensors, "basenet.slice5.2")
    for number, skip in enumerate(reversed(kept), start=1):
        x = np.concatenate([x if number == 1 else enlarge(x), skip])
        for index in (0, 3):
            name = f"upconv{number}.conv.{index}"
            x = np.maximum(normalize(convolve(x, tensors, name), tensors, normalization_of(name)), 0.0)
    for index, *_ in HEAD:
        x = convolve(x, tensors, f"conv_cls.{index}")
        if index != HEAD[-1][0]:
            x = np.maximum(x, 0.0)
    return x.transpose(1, 2, 0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 48)])
def test_the_graph_computes_the_detector(tensors: Tensors, session: Session, height: int, width: int) -> None:
    images = np.random.default_rng(height).standard_normal((2, 3, height, width)).astype(np.float32)
    actual = session.run({"image": images})["scores"]
    expected = np.stack([reference(tensors, image.astype(np.float64)) for image in images])
    assert actual.shape == (2, height // 2, width // 2, 2)
    assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)


def test_all_27_convolutions_are_sites(tensors: Tensors) -> None:
    sites, _ = passes.find_sites(build_craft(tensors), op_types=("Conv",))
    assert len(sites) == 27
    assert {(1536, 512), (9 * 512, 1024)} <= {(site.shape.in_features, site.shape.out_features) for site in sites}
