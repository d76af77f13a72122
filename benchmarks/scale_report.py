"""Exponents of growth, their plot, and what they say of a model with 70 billion parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown_table import table
from benchmarks.saved_results import measured_on
from lowrank_onnx.attempt import PASSES_TO_CHOOSE
from lowrank_onnx.forms import PAIR
from lowrank_onnx.sensitivity.probe_feeds import feeds_to_probe
from lowrank_onnx.types import MatrixShape

Row = Mapping[str, Any]

QUANTITIES = {"seconds": "time", "gigabytes": "memory", "error": "error"}

LAYERS = 80
BLOCK = ((8192, 8192), (8192, 1024), (8192, 1024), (8192, 8192), (8192, 28672), (8192, 28672), (28672, 8192))
"""Weights (in, out) of a block of Llama 2 70B (arXiv 2307.09288, with grouped queries): query, key, value, output,
gate, up, down."""

SHAPES = tuple(MatrixShape(1, before, after) for before, after in BLOCK)

INPUTS = (8192, 8192, 8192, 28672)
"""Widths of the block's distinct inputs, each of which has a second moment."""

TEXTS, LENGTH = 128, 2048
"""Of calibration, in texts and tokens, as papers on language models take."""


@dataclass(frozen=True, slots=True)
class Fit:
    """quantity = factor * value ** exponent."""

    exponent: float
    factor: float

    def at(self, value: float) -> float:
        """The quantity at a value."""
        return float(self.factor * value**self.exponent)


def fit(values: Sequence[float], quantities: Sequence[float]) -> Fit:
    """Least squares on logarithms, over the larger half of the range, where constant costs weigh least."""
    order = np.argsort(values)[-max(3, (len(values) + 1) // 2) :]
    x, y = np.log(np.asarray(values, float)[order]), np.log(np.asarray(quantities, float)[order])
    exponent, offset = np.polyfit(x, y, 1)
    return Fit(float(exponent), float(np.exp(offset)))


def fits(results: Sequence[Row]) -> dict[tuple[str, str, str], Fit]:
    """By what was measured, what varied, and the quantity; those with three values at least."""
    found = {}
    for what, variable in dict.fromkeys((row["what"], row["variable"]) for row in results):
        rows = [row for row in results if (row["what"], row["variable"]) == (what, variable)]
        for quantity in QUANTITIES:
            if len(rows) >= 3 and all(row[quantity] > 0 for row in rows):
                found[what, variable, quantity] = fit([r["value"] for r in rows], [r[quantity] for r in rows])
    return found


def write_pages(results: Sequence[Row], out: Path) -> None:
    """scale.md and scale.svg."""
    known = fits(results)
    plot(results, known, out / "scale.svg")
    (out / "scale.md").write_text(markdown(results, known), encoding="utf-8")


def markdown(results: Sequence[Row], known: Mapping[tuple[str, str, str], Fit]) -> str:
    """The page."""
    lines = [
        "# Scale: how time, memory and error grow",
        "",
        "Made by `python -m benchmarks.scale`. `kernel` is one weighted factorization of a square weight with a slow",
        "spectrum; `program` the command line on stacks of MatMul and Relu (width 256, depth 4, 32 feeds of 64 rows,",
        "half of the parameters, where they don't vary), all stages but validation. Exponents are fitted to the larger",
        "half of each range; below it constant costs rule. Memory of the program is beyond what Python takes with",
        "everything imported.",
        "",
        "![Time, memory and error, log-log](scale.svg)",
        "",
    ]
    pairs = list(dict.fromkeys((what, variable) for what, variable, _ in known))
    rows = []
    for what, variable in pairs:
        values = sorted(r["value"] for r in results if (r["what"], r["variable"]) == (what, variable))
        exponents = [known.get((what, variable, quantity)) for quantity in QUANTITIES]
        cells = ["" if found is None else f"{found.exponent:.2f}" for found in exponents]
        rows.append([what, variable, f"{values[0]} to {values[-1]}", *cells])
    head = ["what", "grows with", "range", *(f"{name}: exponent" for name in QUANTITIES.values())]
    lines += [*table(head, rows), ""]
    head = ["what", "varies", "value", "seconds", "GB", "error"]
    ordered = sorted(results, key=lambda row: (row["what"], row["variable"], row["value"]))
    listed = [[r["what"], r["variable"], str(r["value"]), *(f"{r[q]:.3g}" for q in QUANTITIES)] for r in ordered]
    lines += [*table(head, listed), "", *large_model(results, known)]
    return "\n".join([*lines, measured_on([dict(row) for row in results]), ""])


def large_model(results: Sequence[Row], known: Mapping[tuple[str, str, str], Fit]) -> list[str]:
    """What 70 billion parameters would need on this machine, from the fits and from what is stored by design."""
    seconds, memory = known.get(("kernel", "width", "seconds")), known.get(("kernel", "width", "gigabytes"))
    if seconds is None or memory is None:
        return []
    parameters = LAYERS * sum(m * n for m, n in BLOCK)
    # A rectangle costs what a square of as many m n min(m, n) does, and holds what one of as many elements does.
    factorize = LAYERS * sum(seconds.at(float(m * n * min(m, n)) ** (1 / 3)) for m, n in BLOCK)
    held = max(memory.at(((m * m + m * n) / 2) ** 0.5) for m, n in BLOCK)
    moments = LAYERS * sum(width * width * 8 for width in INPUTS)
    spool = LAYERS * sum(4 * PAIR.parameters(shape, PAIR.largest_useful_rank(shape)) for shape in SHAPES)
    rate = _flops(results)
    runs = LAYERS * len(BLOCK) * feeds_to_probe("fast", LAYERS * len(BLOCK), TEXTS, TEXTS)
    count = 1 + runs / TEXTS + PASSES_TO_CHOOSE
    passes = count * 2.0 * parameters * TEXTS * LENGTH / rate
    grams = LAYERS * sum(2.0 * width * width for width in INPUTS) * TEXTS * LENGTH / rate
    product = f"at the {rate / 1e9:.0f} Gflop/s of a product here"
    half = f"{parameters * 2 / 1e9:.0f} -> {parameters / 1e9:.0f} GB"
    rows = [
        ["parameters of the eligible weights", f"{parameters / 1e9:.1f} billion", "80 blocks of Llama 2 70B's shapes"],
        ["weights on disk, before and after", half, "bfloat16, half of them kept"],
        ["second moments on disk", f"{moments / 1e9:.0f} GB", "float64, one for each distinct input"],
        ["factors on disk until the plan is made", f"{spool / 1e9:.0f} GB", "float32, up to the largest useful rank"],
        ["memory of the largest factorization", f"{held:.0f} GB", f"exponent {memory.exponent:.2f}"],
        ["time to factorize", f"{factorize / 3600:.0f} h", f"exponent {seconds.exponent:.2f}, one after another"],
        ["time to form second moments", f"{grams / 3600:.0f} h", product],
        ["time of passes over the feeds", f"{passes / 3600:.0f} h", f"{count:.1f} over {TEXTS} x {LENGTH} tokens"],
    ]
    return [
        "## On paper: 70 billion parameters",
        "",
        "Reckoned, not run: from the fits above, from what the stages store, and from the rate of a matrix product.",
        "The passes: one for second moments, those that measure each weight's effect on the outputs, those that",
        "choose between plans; refinement is left out. Times are of the machine below. Factorizations don't depend on",
        "each other, so theirs divides by the number of machines.",
        "",
        *table(["what", "amount", "from"], rows),
        "",
    ]


def _flops(results: Sequence[Row]) -> float:
    """Flops a second of the product that was timed."""
    product = next(row for row in results if row["what"] == "product")
    return 2.0 * float(product["value"]) ** 3 / float(product["seconds"])


def plot(results: Sequence[Row], known: Mapping[tuple[str, str, str], Fit], target: Path) -> None:
    """A row of log-log plots for the kernel and one for the program; the same bytes for the same results."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots(2, len(QUANTITIES))
        for row, what in zip(axes, ("kernel", "program"), strict=True):
            for place, (quantity, title) in zip(row, QUANTITIES.items(), strict=True):
                for variable in dict.fromkeys(r["variable"] for r in results if r["what"] == what):
                    points = sorted(
                        (r["value"], r[quantity]) for r in results if (r["what"], r["variable"]) == (what, variable)
                    )
                    x, y = zip(*points, strict=True)
                    found = known.get((what, variable, quantity))
                    label = variable if found is None else f"{variable} ({found.exponent:.2f})"
                    place.loglog(x, y, "o-", ms=3, lw=1, label=label)
                place.set_title(f"{what}: {title}" + {"seconds": ", s", "gigabytes": ", GB"}.get(quantity, ""))
                place.legend(fontsize=6, frameon=False)
                place.grid(True, alpha=0.3)
        figure.savefig(target, metadata={"Date": None})
