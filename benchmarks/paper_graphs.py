"""The paper's two networks at their real shapes, with weights drawn here: VGG-19 and ViT-B/32 for 1000 classes.

Trained weights of these don't ship; drawn ones have slow spectra, sigma_i = i**-0.4, as trained weights tend to. They
show time, memory and latency, nothing of accuracy.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.peak_memory import peak_memory
from benchmarks.saved_results import Size, circumstances
from benchmarks.spectra import matrix, slow
from models.graph_writer import GraphWriter, write_model
from models.transformer_writer import Transformer

IMAGE_SIZE, CLASSES = 224, 1000
VGG_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions of each stage of VGG-19 (arXiv 1409.1556, configuration E)."""

VGG_HIDDEN = 4096
VIT_LAYERS, VIT_WIDTH, PATCH = 12, 768, 32
"""Of ViT-B/32 (arXiv 2010.11929)."""


@dataclass(frozen=True, slots=True)
class GraphResult:
    """One network through the command line, in a process of its own.

    Attributes
    ----------
    alpha : r = ceil(alpha min(in, out)) for every weight that this makes smaller.
    seconds, peak_gigabytes : of the whole command, validation included; resident memory, None where it isn't known.
    file_bytes, file_bytes_after, milliseconds, milliseconds_after, speedup... : before and after, for one image.
    """

    network: str
    size: Size
    alpha: float
    seconds: float
    peak_gigabytes: float | None
    file_bytes: int
    file_bytes_after: int
    milliseconds: float
    milliseconds_after: float
    speedup: float
    speedup_low: float
    speedup_high: float
    date: str
    machine: str
    versions: Mapping[str, str]


def draw(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """A weight (out, in, ...) with a slow spectrum, scaled so that activations keep their size through a ReLU."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    values = slow(min(rows, columns))
    W = matrix((rows, columns), values * np.sqrt(2.0 * rows / np.sum(values**2)), seed)
    return np.asarray(W.reshape(shape), np.float32)


def build_vgg19(divisor: int = 1) -> onnx.ModelProto:
    """VGG-19; a `divisor` above 1 makes every layer that much narrower, for tests."""
    writer, value, channels, seed = GraphWriter(), "image", 3, 0
    for stage, (width, count) in enumerate(VGG_STAGES, start=1):
        for index in range(count):
            weight = draw((width // divisor, channels, 3, 3), seed)
            bias = np.zeros(width // divisor, np.float32)
            value = writer.convolution(value, weight, bias, f"conv{stage}_{index + 1}")
            value = writer.node("Relu", [value], f"{value}/relu")
            channels, seed = width // divisor, seed + 1
        value = writer.node("MaxPool", [value], f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2])
    value = writer.node("Flatten", [value], "flat", axis=1)
    sizes = (channels * (IMAGE_SIZE // 32) ** 2, VGG_HIDDEN // divisor, VGG_HIDDEN // divisor, CLASSES)
    for index, (before, after) in enumerate(itertools.pairwise(sizes), start=6):
        stored = [
            writer.constant(f"fc{index}.weight", draw((after, before), seed)),
            writer.constant(f"fc{index}.bias", np.zeros(after, np.float32)),
        ]
        value = writer.node("Gemm", [value, *stored], f"fc{index}" if index < 8 else "logits", transB=1)
        value, seed = writer.node("Relu", [value], f"fc{index}/relu") if index < 8 else value, seed + 1
    return writer.model("vgg19", *_signature())


def build_vit_b32(layers: int = VIT_LAYERS) -> onnx.ModelProto:
    """ViT-B/32; fewer `layers` for tests."""
    width, patches = VIT_WIDTH, (IMAGE_SIZE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(layers):
        name = f"vit/layer_{index}"
        linear = {
            "self_attention/linear_0": (3 * width, width),
            "self_attention/linear_1": (width, width),
            "ffn/linear_0": (4 * width, width),
            "ffn/linear_1": (width, 4 * width),
        }
        shapes |= {f"{name}/{part}/weight": shape for part, shape in linear.items()}
    tensors: dict[str, NDArray[Any]] = {
        name: draw(shape, seed) / np.float32(2.0) for seed, (name, shape) in enumerate(shapes.items())
    }
    tensors |= {name.replace("/weight", "/bias"): np.zeros(shape[0]) for name, shape in shapes.items()}
    norms = [f"vit/layer_{i}/{part}/layer_norm" for i in range(layers) for part in ("self_attention", "ffn")]
    for name in (*norms, "vit/layer_norm"):
        tensors |= {f"{name}/gamma": np.ones(width), f"{name}/beta": np.zeros(width)}
    tensors["vit/position_encodings/encodings"] = np.random.default_rng(0).standard_normal((patches + 1, width))
    return _write_vit(Transformer(tensors, "vit"))


def _write_vit(writer: Transformer) -> onnx.ModelProto:
    kernel = draw((VIT_WIDTH, 3, PATCH, PATCH), 1000)
    patches = writer.convolution(
        "image", kernel, np.zeros(VIT_WIDTH, np.float32), "patches", strides=[PATCH, PATCH], pads=[0] * 4
    )
    columns = writer.constant("by_patch", np.array([0, VIT_WIDTH, -1], np.int64))
    flat = writer.node("Reshape", [patches, columns], "patches/flat")
    tokens = writer.node("Transpose", [flat], "patches/tokens", perm=[0, 2, 1])
    batch = writer.node("Shape", ["image"], "batch", start=0, end=1)
    shape = writer.node(
        "Concat", [batch, writer.constant("one_token", np.array([1, VIT_WIDTH], np.int64))], "class_shape", axis=0
    )
    token = writer.node(
        "Expand", [writer.constant("class_token", np.zeros((1, 1, VIT_WIDTH), np.float32)), shape], "cls"
    )
    value = writer.node("Concat", [token, tokens], "tokens", axis=1)
    value = writer.positions(value, writer.node("Shape", [value], "length", start=1, end=2))
    for index in range(writer.layers):
        value = writer.self_attention(value, f"layer_{index}/self_attention")
        value = writer.feed_forward(value, f"layer_{index}/ffn")
    first = writer.constant("first", np.array(0, np.int64))
    value = writer.node("Gather", [writer.normalized(value, "layer_norm"), first], "class", axis=1)
    head = [writer.constant("head.weight", draw((CLASSES, VIT_WIDTH), 1001))]
    writer.node("Gemm", [value, *head, writer.constant("head.bias", np.zeros(CLASSES, np.float32))], "logits", transB=1)
    return writer.model("vit_b32", *_signature())


def _signature() -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])
    return [image], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])]


NETWORKS: Mapping[str, Callable[[], onnx.ModelProto]] = {"vgg19": build_vgg19, "vit-b32": build_vit_b32}

NARROWED: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "vgg19": functools.partial(build_vgg19, divisor=4),
    "vit-b32": functools.partial(build_vit_b32, layers=2),
}
"""The same for quick runs."""


def measure_graph(network: str, alpha: float, size: Size) -> GraphResult:
    """Write the network, compress it by the command line for size, and read what its report says.

    Raises
    ------
    RuntimeError
        If the command fails.
    """
    build = (NARROWED if size == "quick" else NETWORKS)[network]
    with tempfile.TemporaryDirectory() as scratch:
        source, target, report = (Path(scratch) / name for name in ("in.onnx", "out.onnx", "report.json"))
        write_model(build(), source)
        options = ["--alpha", f"{alpha:g}", "--objective", "size", "--quiet", "--json", str(report)]
        started = time.perf_counter()
        peak = peak_memory(compress_command(source, target, options)) / 1e9
        seconds = time.perf_counter() - started
        verdict = json.loads(report.read_text(encoding="utf-8"))["verdict"]
        latency = verdict["latency"]
        return GraphResult(
            network=network,
            size=size,
            alpha=alpha,
            seconds=seconds,
            peak_gigabytes=peak,
            file_bytes=source.stat().st_size,
            file_bytes_after=target.stat().st_size,
            milliseconds=latency["original"]["median_ms"],
            milliseconds_after=latency["candidate"]["median_ms"],
            speedup=latency["speedup"],
            speedup_low=latency["speedup_low"],
            speedup_high=latency["speedup_high"],
            **circumstances(),
        )


def compress_command(source: Path, target: Path, options: list[str]) -> list[str]:
    """The command line that compresses `source`, run by this Python."""
    return [sys.executable, "-m", "lowrank_onnx", "compress", str(source), "-o", str(target), *options]
