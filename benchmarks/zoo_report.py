"""The zoo's results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_table import table

Row = Mapping[str, Any]


def markdown(originals: Mapping[str, Row], points: Sequence[Row]) -> str:
    """The whole report: a table for each model, in the order of their names."""
    lines = [
        "# Real models on real tasks",
        "",
        "Made by `python -m benchmarks.zoo`. Every model is compressed with default options to a share of the MACs of",
        "the weights that can be factorized, with no retraining. `error` is the relative L2 error of the outputs on",
        "feeds that calibration held out; `speed` the original's latency over the compressed model's, the median of",
        "interleaved pairs with its 95 % interval. A model that isn't measurably faster is not written.",
        "",
    ]
    for name in sorted(originals):
        own = sorted((point for point in points if point["model"] == name), key=lambda point: -point["share"])
        lines += _model(originals[name], own)
    return "\n".join(lines)


def _model(original: Row, points: Sequence[Row]) -> list[str]:
    metrics = list(original["metrics"])
    better = "lower is better" if original["lower_is_better"] else "higher is better"
    head = ["kept MACs", *metrics, "parameters", "file", "MACs", "error", "speed", "latency"]
    rows = [
        ["all", *(f"{original['metrics'][name]:.4f}" for name in metrics), *_size(original), "1.000", "", "", ""],
        *(_point(point, metrics) for point in points),
    ]
    dates = ", ".join(sorted({row["date"] for row in (original, *points)}))
    versions = ", ".join(f"{name} {version}" for name, version in original["versions"].items() if version)
    return [
        f"## {original['model']}",
        "",
        f"{original['data'][0].upper()}{original['data'][1:]}; {better}."
        + (" A quick run on few samples." if original["quick"] else ""),
        "",
        *table(head, rows),
        "",
        *(f"Nothing written at {point['share']:g}: {point['message']}\n" for point in points if not point["metrics"]),
        f"Measured on {dates}: {original['machine']}; {versions}.",
        "",
    ]


def _point(point: Row, metrics: Sequence[str]) -> list[str]:
    share = f"{point['share']:g}" + (" (quick)" if point["quick"] else "")
    if not point["metrics"]:
        return [share, *["not written"] * len(metrics), "", "", "", "", "", ""]
    speed = latency = ""
    if point["speedup"] is not None:
        speed = f"{point['speedup']:.2f} ({point['speedup_low']:.2f}-{point['speedup_high']:.2f})"
        latency = f"{point['milliseconds_before']:.3g} -> {point['milliseconds']:.3g} ms"
    macs = "" if point["macs_kept"] is None else f"{point['macs_kept']:.3f}"
    error = "" if point["error"] is None else f"{point['error']:.4f}"
    figures = [f"{point['metrics'][name]:.4f}" for name in metrics]
    return [share, *figures, *_size(point), macs, error, speed, latency]


def _size(row: Row) -> list[str]:
    return [f"{row['parameters'] / 1e6:.2f} M", f"{row['file_bytes'] / 1e6:.1f} MB"]
