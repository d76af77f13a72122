"""Write the README's results from the saved ones: ``python -m benchmarks.readme``.

It replaces what stands between the two markers in README.md, and draws the figures beside the tables. A test holds the
README to what this makes of the results that are committed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table
from benchmarks.peers import INT8, OURS_INT8
from benchmarks.planning_report import BALF, WHOLE
from benchmarks.readme_figures import plot_accuracy, plot_planning
from benchmarks.saved_results import measured_on
from benchmarks.zoo_report import OURS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: made by python -m benchmarks.readme -->", "<!-- results: end -->"

Row = Mapping[str, Any]

WAYS = {
    "plain SVD": "plain SVD",
    "RSVD (q=1)": "RSVD (q = 1)",
    BALF: "whitened, energy ranks (BALF's recipe, re-implemented)",
    "planner, fast": "this planner, plain form, not refined",
    WHOLE: "this program: all forms, refined",
}
COLUMNS = (("vgg", "macs", "VGG"), ("vit", "parameters", "ViT"))
SHARES = (0.8, 0.6, 0.4)

WELL_ABOVE = 0.02
"""Of a share that was asked for: what is kept is told from there on, since some layers aren't faster when cut."""


def block(results: Path) -> str:
    """Everything between the markers, from the JSON files in a directory; what isn't there is left out."""
    parts: dict[str, Callable[[Any], list[str]]] = {
        "planning": planning,
        "paper": paper,
        "zoo": zoo,
        "scale": scale,
    }
    lines: list[str] = []
    for name, write in parts.items():
        place = results / f"{name}.json"
        if place.is_file():
            lines += [*write(json.loads(place.read_text(encoding="utf-8"))), ""]
    return "\n".join(lines).rstrip()


def planning(data: Row) -> list[str]:
    """Error at a given size, on the shipped models."""
    models = {model["model"]: model for model in data["models"]}
    head, cells = [""], {way: [title] for way, title in WAYS.items()}
    for name, cost, title in COLUMNS:
        for share in SHARES:
            head.append(f"{title} {share:g}" if share == SHARES[0] else f"{share:g}")
            points = [p for p in models[name]["points"] if (p["cost"], p["asked"]) == (cost, share)]
            errors = {point["variant"]: point["error"] for point in points}
            least = min(errors[way] for way in WAYS)
            for way, row in cells.items():
                row.append(f"**{errors[way]:.4f}**" if errors[way] == least else f"{errors[way]:.4f}")
    return [
        "**At a given size.** Relative error of the outputs at the share of the multiply-accumulates (VGG) or",
        "parameters (ViT) kept, on images that calibration did not see (`python -m benchmarks.planning`,",
        "[all results](benchmarks/results/planning.md)):",
        "",
        *table(head, list(cells.values())),
        "",
        "![Error against size](benchmarks/results/planning.svg)",
        "",
        _measured([models[name] for name, _, _ in COLUMNS]),
    ]


def paper(saved: Row) -> list[str]:
    """The paper's tables, in short."""
    lines = [
        "**The paper's tables** (`python -m benchmarks.paper`, [all results](benchmarks/results/paper.md)).",
    ]
    kernels = [row for key, row in sorted(saved.items()) if key.startswith("kernel/")]
    if kernels:
        rows = []
        for row in kernels:
            timed = {one["solver"]: one for one in row["timed"]}
            cells = [
                f"{timed[n]['seconds']:.3g} s, {timed[n]['error']:.3f}" for n in ("RSI q=1", "RSI q=4", "this library")
            ]
            shape = f"{row['shape'][0]} x {row['shape'][1]}"
            rows.append([f"{row['matrix']} ({shape})", str(row["rank"]), f"{row['exact_seconds']:.3g} s", *cells])
        head = ["weight", "r", "exact SVD", "RSVD (q = 1)", "RSI, q = 4", "this library"]
        lines += [
            "One factorization: seconds, and the spectral error over the optimal one.",
            "",
            *table(head, rows),
            "",
        ]
    judged = [row for key, row in sorted(saved.items()) if key.startswith("accuracy/")]
    if judged:
        lines += [*_accuracy(judged), ""]
    return [*lines, _measured(list(saved.values()))]


def _accuracy(results: Sequence[Row]) -> list[str]:
    """Top-1 and the change of the probabilities for alpha as a share of the stored parameters."""
    models = list(dict.fromkeys(row["model"] for row in results))
    alphas = sorted({row["rows"][0]["alpha"] for row in results}, reverse=True)
    found = {
        (row["model"], one["alpha"], one["way"]): f"{one['top1']:.1%}, {one['change']:.4f}"
        for row in results
        for one in row["rows"]
        if one["meaning"] == "parameters"
    }
    before = {row["model"]: row["top1"] for row in results}
    columns = [(model, alpha) for model in models for alpha in alphas]
    ways = dict.fromkeys(way for _, _, way in found)
    head = ["way", *(f"{model.removeprefix('fashion_').upper()} {alpha:g}" for model, alpha in columns)]
    rows = [[way, *(found.get((*column, way), "") for column in columns)] for way in ways]
    uncompressed = ", ".join(f"{before[model]:.1%} ({model.removeprefix('fashion_').upper()})" for model in models)
    return [
        f"Top-1 without retraining, at alpha times the parameters of each weight, uncompressed {uncompressed}; and the",
        "mean total variation between the class probabilities before and after, which tells apart what top-1 on",
        f"{min(row['images'] for row in results):,} images doesn't. int8 is onnxruntime's, at its own size.",
        "",
        *table(head, rows),
        "",
        "![Top-1 against size](benchmarks/results/paper.svg)",
    ]


def zoo(saved: Row) -> list[str]:
    """Real models: this program beside the best other recipe and int8."""
    rows = []
    originals = [row for row in saved.values() if "data" in row]
    for original in sorted(originals, key=lambda row: str(row["model"])):
        points = [row for row in saved.values() if row.get("model") == original["model"] and row.get("metrics")]
        for share in sorted({row["share"] for row in points if row.get("way") == OURS}, reverse=True):
            ways = {row["way"]: row for row in points if row.get("share") == share}
            peers = [row for way, row in ways.items() if way not in (OURS, OURS_INT8, INT8)]
            name, sign = next(iter(original["metrics"])), 1.0 if original["lower_is_better"] else -1.0
            best = min(peers, key=lambda row: sign * float(row["metrics"][name]), default=None)
            cells = [_figure(row, name) for row in (ways[OURS], best, ways.get(INT8), ways.get(OURS_INT8))]
            if best is not None:
                cells[1] = f"{best['way']}: {cells[1]}"
            rows.append([original["model"], f"{share:g}", f"{name} {original['metrics'][name]:.3f}", *cells])
    head = ["model", "MACs kept", "uncompressed", OURS, "best other recipe", INT8, OURS_INT8]
    return [
        "**Real models on real tasks** (`python -m benchmarks.zoo`, [all results](benchmarks/results/zoo.md)): the",
        "task's first figure, and the speed. The best other recipe is that of the best figure; for WER and CER lower",
        "is better. What is kept is told where less was cut than asked for, as more would not have been faster.",
        "",
        *table(head, rows),
        "",
        _measured(list(saved.values())),
    ]


def _figure(point: Row | None, name: str) -> str:
    if point is None:
        return ""
    kept = point["macs_kept"]
    as_asked = kept is None or kept < point["share"] + WELL_ABOVE or point["way"] == INT8
    more = "" if as_asked else f" (keeps {kept:.2f})"
    return f"{point['metrics'][name]:.3f}, {point['speedup']:.2f}x{more}"


def scale(saved: Row) -> list[str]:
    """Growth."""
    return [
        "**Scale** (`python -m benchmarks.scale`, [exponents, and what 70 billion parameters would",
        "need](benchmarks/results/scale.md)):",
        "",
        "![Time, memory and error, log-log](benchmarks/results/scale.svg)",
        "",
        _measured(list(saved.values())),
    ]


def _measured(rows: Sequence[Row]) -> str:
    return measured_on([{"size": "default", **row} for row in rows])


def with_block(text: str, made: str) -> str:
    """A README with what is between the markers replaced.

    Raises
    ------
    ValueError
        The markers aren't there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN!r} and then {END!r}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Rewrite README.md, and the figures that it shows."""
    argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__).parse_args()
    for name, plot in {"planning": plot_planning, "paper": plot_accuracy}.items():
        place = RESULTS / f"{name}.json"
        if place.is_file():
            plot(json.loads(place.read_text(encoding="utf-8")), place.with_suffix(".svg"))
    readme = ROOT / "README.md"
    readme.write_text(with_block(readme.read_text(encoding="utf-8"), block(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
