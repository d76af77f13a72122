"""Compresses a synthetic model of several gigabytes and reports the peak memory that it took.

    python -m benchmarks.large_model                  # 6 GB through the command line, at most 1.5 GB of memory
    python -m benchmarks.large_model --stage-only     # only loads and saves it, at most 1 GB
    python -m benchmarks.large_model --gigabytes 12 --width 2048 --keep-params 0.6 --limit 2 --times-floor 3

The model is a chain of transformer-like blocks (a square MatMul, and a MatMul and a Gemm through a hidden layer 2.7
times as wide, each with a residual) with its weights in external data. A weight is a part of rank 64, whose singular
values fall slowly, plus noise: cheap to make block by block, and with a known bound on the error of any good
factorization of rank 64 and more. The exit status is 1 where memory, time or error exceed their bounds, or the result
isn't a valid model.

The floor of the time is what can't be left out: reading the input once, factorizing each weight (measured on one weight
of each shape, at the largest rank that the budget needs, in a process that does nothing else) and writing the output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnx.helper

from benchmarks.large_model_file import NOISE_SHARE, Weight, plan_weights, write_model
from lowrank_onnx import linalg
from lowrank_onnx.errors import ModelError
from lowrank_onnx.forms import PIVOTED
from lowrank_onnx.model_io import Model, load_model
from lowrank_onnx.types import Array, MatrixShape

RESULTS = Path(__file__).parent / "results" / "large_model.md"

_STAGE_ONLY = (
    "import sys; from pathlib import Path; from lowrank_onnx.model_io import load_model, stage_model;"
    " stage_model(load_model(sys.argv[1]), Path(sys.argv[2]), force=True).commit()"
)


def run_measured(command: list[str]) -> tuple[int, float, float]:
    """Run a command; returns its exit status, its peak resident gigabytes and its seconds."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it once more
    # Kibibytes on Linux, bytes on macOS.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return process.returncode, peak / 1e9, time.perf_counter() - start


def find_faults(source: Path, target: Path, blocks: list[list[Weight]], *, stage_only: bool) -> list[str]:
    """What is wrong with the result: the checker's complaint, or a weight that isn't what it should be."""
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"onnx.checker refuses the result: {error}"]
    try:
        original, result = load_model(source), load_model(target)
    except ModelError as error:
        return [f"the result can't be loaded: {error}"]
    faults = []
    bound = 0.0 if stage_only else NOISE_SHARE / np.sqrt(1 + NOISE_SHARE**2) * 1.02
    for weight in (blocks[0][0], blocks[-1][1], blocks[-1][2]):
        measured = relative_error(_find(original, weight.name), result, weight)
        print(f"  {weight.name}: relative error {measured:.4f} (bound {bound:.4f})")
        if not measured <= bound:
            faults.append(f"{weight.name} has a relative error of {measured:.4f}: expected at most {bound:.4f}")
    return faults


def relative_error(dense: Array, result: Model, weight: Weight) -> float:
    """Frobenius error of a weight in the result, over the first 512 rows, relative to those rows."""
    part = dense[:512].astype(np.float64)
    found = _stored_weight(result, weight.name)
    return float(np.linalg.norm(found - part) / np.linalg.norm(part))


def _stored_weight(result: Model, name: str) -> Array:
    """The first 512 rows of what the result multiplies by: the weight, a pair, or pivots with the rest around them."""
    names = {tensor.name for tensor in result.skeleton.graph.initializer}
    if name in names:
        return _find(result, name)[:512].astype(np.float64)
    left = _find(result, f"{name}.left")[:512].astype(np.float64)
    if f"{name}.right" in names:
        return left @ _find(result, f"{name}.right")
    rest = {side: left @ _find(result, f"{name}.{side}") for side in ("before", "after") if f"{name}.{side}" in names}
    blocks = [rest.get("before"), left, rest.get("after")]
    return np.concatenate([block for block in blocks if block is not None], axis=1)


def _find(model: Model, name: str) -> Array:
    return model.store.array(next(tensor for tensor in model.skeleton.graph.initializer if tensor.name == name))


@contextlib.contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="lowrank-large-") as made:
        yield Path(made)


def main() -> int:
    """Parse the options, make the model, run, check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the model (default 6)")
    parser.add_argument("--width", type=int, default=4096, help="width of the model (default 4096)")
    parser.add_argument("--rank", type=int, default=256, help="rank of the factors (default 256)")
    parser.add_argument("--keep-params", type=float, help="the budget, instead of a rank")
    parser.add_argument("--times-floor", type=float, help="measure the floor of the time, and allow so many times it")
    parser.add_argument("--dir", type=Path, help="where the files go, and stay (default: a temporary directory)")
    parser.add_argument("--limit", type=float, help="peak gigabytes allowed (default 1.5; 1 with --stage-only)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} beside the other results")
    parser.add_argument("--stage-only", action="store_true", help="load and save only, without compressing")
    options = parser.parse_args()
    limit = options.limit if options.limit is not None else 1.0 if options.stage_only else 1.5
    blocks = plan_weights(int(options.gigabytes * 1e9), options.width)
    with _directory(options.dir) as folder:
        source, target = folder / "large.onnx", folder / "small.onnx"
        needed = 2 * sum(weight.nbytes for block in blocks for weight in block)
        if shutil.disk_usage(folder).free < needed:
            print(f"{folder} has too little room: expected {needed / 1e9:.1f} GB; give another --dir")
            return 1
        start = time.perf_counter()
        size = write_model(source, blocks)
        print(f"made {source.name}: {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        budget = ["--rank", str(options.rank)]
        if options.keep_params is not None:
            budget = ["--keep-params", str(options.keep_params)]
        status, peak, seconds = run_measured(_command(source, target, budget, stage_only=options.stage_only))
        if status != 0:
            print(f"the run failed with exit status {status}")
            return 1
        written = load_model(target).file_bytes
        summary = [
            f"{source.name}: {sum(map(len, blocks))} weights, {size / 1e9:.2f} GB in, {written / 1e9:.2f} GB out",
            f"peak resident memory {peak:.2f} GB (limit {limit:g}), {seconds:.0f} s",
        ]
        print(*summary, sep="\n", flush=True)
        faults = find_faults(source, target, blocks, stage_only=options.stage_only)
        if options.times_floor is not None:
            ranks = None if options.keep_params is not None else options.rank
            floor = measure_floor(source, target, blocks, ranks)
            parts = ", ".join(f"{part} {spent:.0f} s" for part, spent in floor.items())
            least = sum(floor.values())
            summary.append(
                f"floor of the time: {least:.0f} s ({parts}); the run took {seconds / least:.2f} times as long"
            )
            print(summary[-1], flush=True)
            if seconds > options.times_floor * least:
                faults.append(f"the run took {seconds:.0f} s: more than {options.times_floor:g} times {least:.0f} s")
        if peak > limit:
            faults.append(f"the peak of {peak:.2f} GB is above {limit:g} GB")
    faults = [f"FAILED: {fault}" for fault in faults]
    print(*faults, sep="\n", end="\n" if faults else "")
    if options.save:
        save_results(sys.argv[1:], [*summary, *(faults or ["no fault was found"])])
    return 1 if faults else 0


def save_results(arguments: list[str], lines: list[str]) -> None:
    """Write what was printed, and how to print it again."""
    command = " ".join(["python -m benchmarks.large_model", *arguments])
    head = f"# A large model\n\n`{command}`, {date.today()}, {os.cpu_count()} cores.\n\n"
    RESULTS.write_text(head + "".join(f"- {line}\n" for line in lines), encoding="utf-8")


def measure_floor(source: Path, target: Path, blocks: list[list[Weight]], rank: int | None) -> dict[str, float]:
    """Seconds to read the model, to factorize its weights one by one and to write a file of the result's size.

    `rank` None stands for the largest that any form has a use for: a budget over all weights needs them up to there.
    """
    start = time.perf_counter()
    with open(source.with_name(f"{source.name}.data"), "rb", buffering=0) as file:
        while file.read(8 << 20):
            pass
    seconds = {"reading": time.perf_counter() - start, "factorizing": 0.0}
    model = load_model(source)
    for weight in blocks[0]:
        values = _find(model, weight.name)
        largest = PIVOTED.largest_useful_rank(MatrixShape(1, *values.shape))
        start = time.perf_counter()
        linalg.factor(values, rank or largest, method="auto", power_iterations=4, oversampling=10, seed=0)
        seconds["factorizing"] += (time.perf_counter() - start) * len(blocks)
    left = load_model(target).file_bytes
    start = time.perf_counter()
    with open(target.with_name("floor.bin"), "wb") as file:
        for offset in range(0, left, 8 << 20):
            file.write(bytes(min(8 << 20, left - offset)))
        file.flush()
        os.fsync(file.fileno())
    seconds["writing"] = time.perf_counter() - start
    target.with_name("floor.bin").unlink()
    return seconds


def _command(source: Path, target: Path, budget: list[str], *, stage_only: bool) -> list[str]:
    if stage_only:
        return [sys.executable, "-c", _STAGE_ONLY, str(source), str(target)]
    options = [*budget, "--objective", "size", "--no-validate", "--force"]
    return [sys.executable, "-m", "lowrank_onnx", "compress", str(source), "-o", str(target), *options]


if __name__ == "__main__":
    sys.exit(main())
