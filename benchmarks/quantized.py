"""Low rank, int8 and both: size, accuracy and speed on the shipped classifiers.

    python -m benchmarks.quantized                    # prints the tables, writes benchmarks/results/quantized.md

The VGG is quantized statically (convolutions), the ViT dynamically (MatMuls) and to 4 bits. Low rank comes first: the
compressed float model is what is quantized. Accuracy is on the 2,000 test images; latency is of 32 images, in pairs
interleaved with the float32 original.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.markdown_table import table
from benchmarks.narrow_models import (
    FORMS_TO_QUANTIZE,
    compute_in_half,
    quantize_dynamically,
    quantize_statically,
    quantize_to_four_bits,
    store_narrow,
)
from lowrank_onnx import Config, FixedRank, KeepMacs, compress
from lowrank_onnx.evaluate import Session, load_feeds, measure_latency, open_session
from lowrank_onnx.types import Array

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
RESULTS = Path(__file__).parent / "results" / "quantized.md"
SHARES = {"fashion_vgg": 0.6, "fashion_vit": 0.5}
RANK = 24
"""Of the comparison of stored types: factors at it have fewer bytes than int8, too."""

Quantizer = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of a model, measured."""

    variant: str
    megabytes: float
    accuracy: float
    speedup: float


def load_images(part: str, count: int) -> Array:
    """Normalised images of the npz, float32."""
    data = np.load(MODELS / "fashion_mnist.npz")
    images: Array = ((data[f"{part}_image"][:count] / 255 - data["mean"]) / data["std"]).astype(np.float32)
    return images


def quantizers(model: str, feeds: list[Mapping[str, Array]]) -> dict[str, Quantizer]:
    """The quantizers that suit a model."""
    if model == "fashion_vgg":
        return {"int8 (static)": lambda source, target: quantize_statically(source, target, feeds)}
    return {"int8 (dynamic)": quantize_dynamically, "4 bits": quantize_to_four_bits}


def accuracy(session: Session, images: Array, labels: Array) -> float:
    """Share of images of which the model tells the class."""
    guesses = [next(iter(session.run({"image": batch}).values())).argmax(-1) for batch in np.split(images, 20)]
    return float(np.mean(np.concatenate(guesses) == labels))


def measure(model: str, directory: Path) -> list[Row]:
    """All variants of one model."""
    feeds: list[Mapping[str, Array]] = [{"image": batch} for batch in np.split(load_images("calib", 256), 8)]
    source, small = MODELS / f"{model}.onnx", directory / "small.onnx"
    config = Config(budget=KeepMacs(SHARES[model]), objective="size", validate=False, forms=FORMS_TO_QUANTIZE)
    compress(source, config, feeds=feeds, output=small)
    variants = {"float32": source, f"low rank, MACs x {SHARES[model]:g}": small}
    for name, quantize in quantizers(model, feeds).items():
        for prefix, given in (("", source), ("low rank, then ", small)):
            target = directory / f"{len(variants)}.onnx"
            quantize(given, target)
            variants[prefix + name] = target
    images, labels = load_images("test", 2000), np.load(MODELS / "fashion_mnist.npz")["test_label"]
    original = open_session(source)
    batch = load_feeds([{"image": images[:32]}], original.inputs)
    rows = []
    for name, path in variants.items():
        session, speedup = open_session(path), 1.0
        if path != source:
            speedup = measure_latency(original, session, batch, max_seconds=8.0).speedup
        rows.append(Row(name, path.stat().st_size / 1e6, accuracy(session, images, labels), speedup))
    return rows


def storage_errors(model: str) -> dict[str, tuple[float, float]]:
    """By storage: megabytes of the model, and the outputs' relative error of rank 24 against that version's own."""
    feeds: list[Mapping[str, Array]] = [{"image": batch} for batch in np.split(load_images("calib", 256), 8)]
    source = onnx.load(MODELS / f"{model}.onnx")
    versions = {
        "float32": source,
        "float32 stored as float16": store_narrow(source, "float16"),
        "float32 stored as bfloat16": store_narrow(source, "bfloat16"),
        "float32 stored as int8": store_narrow(source, "int8"),
        "float16": compute_in_half(source),
    }
    config = Config(budget=FixedRank(RANK), objective="size", validate=False, op_types=("MatMul", "Gemm"))
    images = load_images("test", 512)
    found = {}
    for name, version in versions.items():
        result = compress(version, config, feeds=feeds)
        assert result.model is not None
        before, after = (
            next(iter(open_session(proto.SerializeToString()).run({"image": images}).values())).astype(np.float64)
            for proto in (version, result.model)
        )
        error = float(np.linalg.norm(after - before) / np.linalg.norm(before))
        found[name] = version.ByteSize() / 1e6, error
    return found


def report() -> str:
    """Everything measured, as Markdown."""
    where = f"`python -m benchmarks.quantized`, {datetime.date.today()}, {os.cpu_count()} cores"
    how = "the speed is relative to the float32 original, timed in interleaved pairs on 32 images"
    lines = ["# Low rank, int8 and both", "", f"{where}; {how}."]
    for model in SHARES:
        with tempfile.TemporaryDirectory() as name:
            rows = measure(model, Path(name))
        cells = [(r.variant, f"{r.megabytes:.2f}", f"{r.accuracy:.2%}", f"{r.speedup:.2f}x") for r in rows]
        print(model, *cells, sep="\n  ", flush=True)
        lines += ["", f"## {model}", "", *table(("variant", "file, MB", "top-1, 2,000 test images", "speed"), cells)]
    errors = [
        (model, kind, f"{size:.2f}", f"{error:.4f}")
        for model in SHARES
        for kind, (size, error) in storage_errors(model).items()
    ]
    head = ("model", "type", "MB before", "relative error")
    lines += ["", f"## The same rank ({RANK}) in every type", "", *table(head, errors)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and save; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"the file to write (default {RESULTS.name})")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    text = report()
    print(text)
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
