"""The tables of the paper on randomized subspace iteration (arXiv 2604.02659): ``python -m benchmarks.paper``.

Three parts: ``kernel`` (time and error of one factorization), ``accuracy`` (a VGG and a ViT on ten classes, compressed
without retraining) and ``graphs`` (VGG-19 and ViT-B/32 at their real shapes, from end to end). Each result is saved
when it is there, and a run that was stopped goes on behind the last one; `--again` measures anew what is there already.
`--full` judges by all images, and repeats what takes long.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.paper_accuracy import MODELS, AccuracyBench, alphas_for
from benchmarks.paper_graphs import NETWORKS, measure_graph
from benchmarks.paper_kernel import matrices, measure_kernel
from benchmarks.paper_report import markdown
from benchmarks.saved_results import SavedResults, Size

RESULTS = Path(__file__).parent / "results"
PARTS = ("kernel", "accuracy", "graphs")
ALPHAS = (0.4, 0.2)
"""Of the full networks."""


def main() -> None:
    arguments = _parse()
    logging.disable(logging.WARNING)  # onnxruntime's quantizer advises what was done already
    saved = SavedResults(arguments.out / "paper.json")
    run = {"kernel": run_kernel, "accuracy": run_accuracy, "graphs": run_graphs}
    for part in arguments.parts:
        run[part](saved, size=arguments.size, again=arguments.again)
        write_report(arguments.out)
    print((arguments.out / "paper.md").read_text(encoding="utf-8"))


def run_kernel(saved: SavedResults, *, size: Size, again: bool) -> None:
    """One result for each matrix and rank."""
    for source in matrices(size):
        keys = {rank: f"kernel/{source.name}/{rank}" for rank in source.ranks}
        if again or not all(saved.has(key, size) for key in keys.values()):
            started = time.perf_counter()
            for result in measure_kernel(source, size):
                started = _keep(saved, keys[result.rank], result, started)


def run_accuracy(saved: SavedResults, *, size: Size, again: bool) -> None:
    """One result for each model and alpha."""
    for name in MODELS:
        alphas = [alpha for alpha in alphas_for(size) if again or not saved.has(f"accuracy/{name}/{alpha:g}", size)]
        if not alphas:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            bench = AccuracyBench(name, Path(scratch), size)
            for alpha in alphas:
                started = time.perf_counter()
                _keep(saved, f"accuracy/{name}/{alpha:g}", bench.measure(alpha), started)


def run_graphs(saved: SavedResults, *, size: Size, again: bool) -> None:
    """One result for each network and alpha."""
    for network in NETWORKS:
        for alpha in ALPHAS[-1:] if size == "quick" else ALPHAS:
            key = f"graphs/{network}/{alpha:g}"
            if again or not saved.has(key, size):
                started = time.perf_counter()
                _keep(saved, key, measure_graph(network, alpha, size), started)


def _keep(saved: SavedResults, key: str, result: Any, started: float) -> float:
    """Save a result with the seconds since `started`; returns the time."""
    now = time.perf_counter()
    saved.put(key, result, now - started)
    print(f"{key}: {now - started:.0f} s", flush=True)
    return now


def write_report(out: Path) -> None:
    """All that was saved, as Markdown."""
    saved = SavedResults(out / "paper.json")
    (out / "paper.md").write_text(markdown({part: saved.part(f"{part}/") for part in PARTS}), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    quick = "small matrices, few images, narrow networks"
    sizes.add_argument("--quick", action="store_const", dest="size", const="quick", help=quick)
    sizes.add_argument("--full", action="store_const", dest="size", const="full", help="all images, all ways")
    parser.add_argument("--again", action="store_true", help="measure what is saved already")
    parser.add_argument("--parts", type=_parts, default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of paper.json and paper.md")
    parser.set_defaults(size="default")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    return parts


if __name__ == "__main__":
    main()
