"""The paper's tables as Markdown, with this project's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_table import table
from benchmarks.paper_accuracy import PEERS
from benchmarks.peer_ranks import SMALLEST
from benchmarks.peers import RECIPES
from benchmarks.saved_results import measured_on

Row = Mapping[str, Any]

PUBLISHED = {
    (200, "RSI q=2"): "76x",
    (200, "RSI q=4"): "51x",
    (1000, "RSI q=2"): "10x",
}
"""The paper's own speed-ups over exact SVD for VGG-19's 4096 x 25088, most likely on a GPU."""

MEANINGS = {
    "rank": "alpha as a share of the rank: r = ceil(alpha min(C, D))",
    "parameters": "alpha as a share of the stored parameters: r (C + D) <= alpha C D",
}


def markdown(saved: Mapping[str, Sequence[Row]]) -> str:
    """The whole report, of what there is."""
    lines = [
        "# The paper's tables",
        "",
        "Made by `python -m benchmarks.paper`. The paper is arXiv 2604.02659; q counts its power iterations, and q = 1",
        "is the plain randomized SVD.",
        "",
    ]
    lines += _kernel(saved["kernel"]) if saved["kernel"] else []
    for model in dict.fromkeys(result["model"] for result in saved["accuracy"]):
        lines += _accuracy([result for result in saved["accuracy"] if result["model"] == model])
    lines += _graphs(saved["graphs"]) if saved["graphs"] else []
    return "\n".join(lines)


def _kernel(results: Sequence[Row]) -> list[str]:
    published = ", ".join(f"{solver}, r={rank}: {factor}" for (rank, solver), factor in PUBLISHED.items())
    lines = [
        "## One factorization: time and error",
        "",
        "Seconds of wall time, how many times faster than the exact SVD (gesdd) of the same matrix, and the normalised",
        "spectral error ||W - L R||_2 / sigma_(r+1), of which 1 is the best there is; it is measured by Lanczos'",
        "iteration, which comes from below to within a few thousandths. RSI is the algorithm as published. The paper's",
        f"own speed-ups at 4096 x 25088: {published}.",
        "",
    ]
    solvers = [timed["solver"] for timed in results[0]["timed"]]
    rows = [
        [
            f"{result['matrix']} ({result['shape'][0]} x {result['shape'][1]})",
            str(result["rank"]),
            f"{result['exact_seconds']:.3g}",
            *(_timed(timed, result["exact_seconds"]) for timed in result["timed"]),
        ]
        for result in sorted(results, key=lambda result: (result["matrix"], result["rank"]))
    ]
    return [*lines, *table(["matrix", "r", "exact SVD", *solvers], rows), "", *_measured(results)]


def _timed(timed: Row, exact: float) -> str:
    return f"{timed['seconds']:.3g} s ({exact / timed['seconds']:.1f}x), {timed['error']:.3f}"


def _accuracy(results: Sequence[Row]) -> list[str]:
    result = results[0]
    lines = [
        f"## Accuracy without retraining: {result['model']}",
        "",
        f"Top-1 and top-5 on {result['images']} test images of ten classes; uncompressed {result['top1']:.2%} and",
        f"{result['top5']:.2%}. `change` is the mean total variation between the class probabilities before and",
        f"after. Weights with fewer than {SMALLEST} rows or columns, such as the classifier of ten classes, stay dense",
        "in these models. The last columns are of the classifier's weight alone, approximated at the same alpha: the",
        "change that makes, its certified bound, the paper's bound (which is on the Euclidean norm of the change, at",
        "most 1.414), and the share of images whose class is certified not to change.",
        "",
        "Rows of other work, for the same number of stored parameters:",
        "",
        *(f"- {recipe.name}: {recipe.source}." for recipe in RECIPES if recipe.name in PEERS),
        "",
    ]
    head = ["alpha", "way", "kept", "top-1", "top-5", "change", "classifier", "bound", "paper's bound", "certified"]
    for meaning, title in MEANINGS.items():
        found = sorted(results, key=lambda result: -float(result["rows"][0]["alpha"]))
        rows = [_judged(row) for result in found for row in result["rows"] if row["meaning"] == meaning]
        lines += [f"With {title}.", "", *table(head, rows), ""]
    return [*lines, *_measured(results)]


def _judged(row: Row) -> list[str]:
    certified = ["classifier_change", "classifier_bound", "paper_bound"]
    return [
        f"{row['alpha']:g}",
        row["way"],
        f"{row['kept']:.3f}",
        f"{row['top1']:.2%}",
        f"{row['top5']:.2%}",
        f"{row['change']:.4f}",
        *("" if row[name] is None else f"{row[name]:.4f}" for name in certified),
        "" if row["stable"] is None else f"{row['stable']:.1%}",
    ]


def _graphs(results: Sequence[Row]) -> list[str]:
    lines = [
        "## The full networks, from end to end",
        "",
        "VGG-19 and ViT-B/32 at their real shapes, with weights drawn here that have slow spectra, through `compress",
        "--alpha` in a process of its own, validation included. Latency in interleaved pairs.",
        "",
    ]
    head = ["network", "alpha", "seconds", "peak memory", "file", "latency", "speed"]
    rows = [
        [
            result["network"] + (" (narrowed)" if result["size"] == "quick" else ""),
            f"{result['alpha']:g}",
            f"{result['seconds']:.0f}",
            "" if result["peak_gigabytes"] is None else f"{result['peak_gigabytes']:.2f} GB",
            f"{result['file_bytes'] / 1e6:.1f} -> {result['file_bytes_after'] / 1e6:.1f} MB",
            f"{result['milliseconds']:.3g} -> {result['milliseconds_after']:.3g} ms",
            f"{result['speedup']:.2f} ({result['speedup_low']:.2f}-{result['speedup_high']:.2f})",
        ]
        for result in results
    ]
    return [*lines, *table(head, rows), "", *_measured(results)]


def _measured(results: Sequence[Row]) -> list[str]:
    """When, on what, and whether in a hurry."""
    return [measured_on([dict(result) for result in results]), ""]
