"""The tables of the paper on randomized subspace iteration (arXiv 2604.02659): ``python -m benchmarks.paper``.

Three parts: ``kernel`` (time and error of one factorization), ``accuracy`` (a VGG and a ViT on ten classes, compressed
without retraining) and ``graphs`` (VGG-19 and ViT-B/32 at their real shapes, from end to end). Each result is saved
when it is there, and a run that was stopped goes on behind the last one; `--again` measures anew what is there already.
The kernel part fetches real weights, and takes an hour for the exact SVDs of its largest matrix.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.paper_accuracy import MODELS, measure_accuracy
from benchmarks.paper_graphs import NETWORKS, measure_graph
from benchmarks.paper_kernel import matrices, measure_kernel
from benchmarks.paper_report import markdown
from benchmarks.saved_results import is_saved, read, save

RESULTS = Path(__file__).parent / "results"
PARTS = ("kernel", "accuracy", "graphs")
ALPHAS = (0.4, 0.2)
"""Of the full networks."""


def main() -> None:
    arguments = _parse()
    place = arguments.out / "paper"
    run = {"kernel": run_kernel, "accuracy": run_accuracy, "graphs": run_graphs}
    for part in arguments.parts:
        run[part](place, quick=arguments.quick, again=arguments.again)
        write_report(arguments.out)
    print((arguments.out / "paper.md").read_text(encoding="utf-8"))


def run_kernel(place: Path, *, quick: bool, again: bool) -> None:
    """One file for each matrix and rank."""
    for source in matrices(quick=quick):
        targets = {rank: place / f"kernel-{source.name}-{rank}.json" for rank in source.ranks}
        if again or not all(is_saved(target, quick) for target in targets.values()):
            for result in measure_kernel(source, quick=quick):
                save(targets[result.rank], result)
                print(f"{source.name}, rank {result.rank}: done", flush=True)


def run_accuracy(place: Path, *, quick: bool, again: bool) -> None:
    """One file for each model."""
    for name in MODELS:
        target = place / f"accuracy-{name}.json"
        if again or not is_saved(target, quick):
            with tempfile.TemporaryDirectory() as scratch:
                save(target, measure_accuracy(name, Path(scratch), quick=quick))
            print(f"{name}: done", flush=True)


def run_graphs(place: Path, *, quick: bool, again: bool) -> None:
    """One file for each network and alpha."""
    for network in NETWORKS:
        for alpha in ALPHAS[-1:] if quick else ALPHAS:
            target = place / f"graphs-{network}-{alpha:g}.json"
            if again or not is_saved(target, quick):
                save(target, measure_graph(network, alpha, quick=quick))
                print(f"{network} at {alpha:g}: done", flush=True)


def write_report(out: Path) -> None:
    """All that was saved, as Markdown."""
    saved = {part: [read(path) for path in sorted((out / "paper").glob(f"{part}-*.json"))] for part in PARTS}
    (out / "paper.md").write_text(markdown(saved), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small matrices, few images, narrow networks")
    parser.add_argument("--again", action="store_true", help="measure what is saved already")
    parser.add_argument("--parts", type=_parts, default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of paper.md and paper/*.json")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    return parts


if __name__ == "__main__":
    main()
