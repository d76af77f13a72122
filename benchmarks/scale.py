"""How time, memory and error grow with width, rank, depth and calibration feeds: ``python -m benchmarks.scale``.

Two things are measured. The kernel: one weighted factorization of a square weight, over widths at a quarter of the
width as rank, and over ranks at one width. The program: the command line on stacks of MatMul and Relu, in a process of
its own, over widths, ranks, depths and numbers of feeds. Exponents are fitted to the larger half of each range and
plotted, and say what a model of 70 billion parameters would need. Each result is saved when it is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from benchmarks.kernel_measure import gemm_rate
from benchmarks.paper_graphs import compress_command, draw
from benchmarks.peak_memory import peak_memory
from benchmarks.saved_results import SavedResults, Size, circumstances
from benchmarks.scale_report import write_pages
from benchmarks.spectra import matrix, slow
from lowrank_onnx.linalg import factor
from models.graph_writer import GraphWriter, write_model

RESULTS = Path(__file__).parent / "results"
ROWS = 64
"""Rows in a feed: positions at which the weights are applied."""

WIDTH, DEPTH, FEEDS, SHARE = 256, 4, 32, 0.5
"""Of a stack, where they aren't what varies."""

KERNEL_WIDTH = 2048
PRODUCT = 1536


@dataclass(frozen=True, slots=True)
class Scaled:
    """One run.

    Attributes
    ----------
    what, variable, value : "kernel" or "program", what varies, and where it stands.
    seconds : of the factorization; of all stages of the program, without the start of Python.
    stages : of the program, by name.
    gigabytes : the most memory in use: what NumPy holds, the weight included; the resident set of the program's
        process, less what it is before anything is done.
    error : relative, of the weight in the norm of its inputs; of the outputs on held-out feeds.
    """

    what: str
    variable: str
    value: int
    size: Size
    seconds: float
    stages: Mapping[str, float]
    gigabytes: float
    error: float
    date: str
    machine: str
    versions: Mapping[str, str]


def plan(size: Size) -> dict[str, Callable[[], tuple[float, Mapping[str, float], float, float]]]:
    """Every run by key: what is measured, what varies, and where it stands."""
    shorter = {"quick": 2, "default": 0, "full": 0}[size]
    widths = {"kernel": (256, 512, 1024, 2048, 4096), "program": (64, 128, 256, 512, 1024)}
    ranks = {"kernel": (32, 64, 128, 256, 512), "program": (8, 16, 32, 64, 112)}
    runs: dict[str, Callable[[], tuple[float, Mapping[str, float], float, float]]] = {
        f"product/width/{PRODUCT}": measure_product
    }
    for value in _cut(widths["kernel"], shorter):
        runs[f"kernel/width/{value}"] = functools.partial(measure_kernel, value, value // 4)
    for value in _cut(ranks["kernel"], shorter):
        width = 512 if size == "quick" else KERNEL_WIDTH
        runs[f"kernel/rank/{value}"] = functools.partial(measure_kernel, width, value)
    for value in _cut(widths["program"], shorter):
        runs[f"program/width/{value}"] = functools.partial(measure_program, width=value)
    for value in _cut(ranks["program"], shorter):
        runs[f"program/rank/{value}"] = functools.partial(measure_program, rank=value)
    for value in _cut((2, 4, 8, 16, 32), shorter):
        runs[f"program/depth/{value}"] = functools.partial(measure_program, depth=value)
    for value in _cut((8, 16, 32, 64, 128), shorter):
        runs[f"program/feeds/{value}"] = functools.partial(measure_program, feeds=value)
    return runs


def _cut(values: tuple[int, ...], fewer: int) -> tuple[int, ...]:
    return values[: len(values) - fewer]


def measure_product() -> tuple[float, Mapping[str, float], float, float]:
    """One product of square matrices in float32, the best of five: what this machine can do."""
    return 2.0 * PRODUCT**3 / gemm_rate(time.perf_counter, PRODUCT), {}, 3 * 4 * PRODUCT**2 / 1e9, 0.0


def measure_kernel(width: int, rank: int) -> tuple[float, Mapping[str, float], float, float]:
    """One factorization with a second moment of its inputs; seconds, no stages, gigabytes, relative error."""
    W = matrix((width, width), slow(width), seed=1)
    X = np.random.default_rng(2).standard_normal((2 * width, width), np.float32) * np.linspace(0.1, 1.0, width)
    moment = (X.T @ X / len(X)).astype(np.float64)
    tracemalloc.start()
    started = time.perf_counter()
    found = factor(W, rank, second_moment=moment, device="cpu")
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1] + W.nbytes + moment.nbytes
    tracemalloc.stop()
    E = W - found.left @ found.right
    error = np.sqrt(np.sum(E * (moment @ E)) / np.sum(W * (moment @ W)))
    return seconds, {}, peak / 1e9, float(error)


def measure_program(
    *, width: int = WIDTH, depth: int = DEPTH, feeds: int = FEEDS, rank: int | None = None
) -> tuple[float, Mapping[str, float], float, float]:
    """The command line on a stack, for size; seconds, stages, gigabytes, relative error of the outputs."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target, calibration, report = (Path(scratch) / n for n in ("in.onnx", "out.onnx", "calib", "r.json"))
        write_stack(source, width, depth)
        calibration.mkdir()
        generator = np.random.default_rng(3)
        basis = draw((width, width), 999)
        for number in range(feeds):
            # Inputs with a slow spectrum too, as activations have.
            values = generator.standard_normal((ROWS, width), np.float32) @ basis
            np.savez(calibration / f"{number:05}.npz", x=values)
        budget = ["--keep-params", f"{SHARE:g}"] if rank is None else ["--rank", f"{rank}"]
        options = [*budget, "--objective", "size", "--calib", str(calibration), "--quiet", "--json", str(report)]
        peak = peak_memory(compress_command(source, target, options)) - started_memory()
        said = json.loads(report.read_text(encoding="utf-8"))
        error = said["verdict"]["relative_error"]
        stages = {name: seconds for name, seconds in said["seconds"].items() if name != "validate"}
        return sum(stages.values()), stages, peak / 1e9, error


@functools.cache
def started_memory() -> int:
    """Bytes that Python takes with everything imported, and nothing done."""
    return peak_memory([sys.executable, "-c", "import time, onnxruntime, lowrank_onnx.cli; time.sleep(0.2)"])


def write_stack(target: Path, width: int, depth: int) -> None:
    """A model of `depth` times MatMul and Relu, with weights of slow spectra."""
    writer, value = GraphWriter(), "x"
    for index in range(depth):
        product = writer.node("MatMul", [value, writer.constant(f"w{index}", draw((width, width), index))], f"h{index}")
        value = writer.node("Relu", [product], "y" if index == depth - 1 else f"r{index}")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in ("x", "y")]
    write_model(writer.model("stack", values[:1], values[1:]), target)


def main() -> int:
    """Measure what isn't saved yet, and write the pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_const", dest="size", const="quick", help="shorter ranges")
    parser.add_argument("--again", action="store_true", help="measure what is saved already")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of scale.json, scale.md and scale.svg")
    parser.set_defaults(size="default")
    arguments = parser.parse_args()
    saved = SavedResults(arguments.out / "scale.json")
    for key, run in plan(arguments.size).items():
        if not arguments.again and saved.has(key, arguments.size):
            continue
        started = time.perf_counter()
        what, variable, value = key.split("/")
        saved.put(
            key,
            Scaled(what, variable, int(value), arguments.size, *run(), **circumstances()),
            time.perf_counter() - started,
        )
        print(f"{key}: {saved[key]['seconds']:.3g} s, {saved[key]['gigabytes']:.3g} GB", flush=True)
    write_pages(saved.part(""), arguments.out)
    print((arguments.out / "scale.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
