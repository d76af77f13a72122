"""The forms benchmark's results as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(data: Row) -> str:
    """The whole report."""
    libraries = ("numpy", "onnx", "onnxruntime", "python")
    versions = ", ".join(f"{name} {data['versions'][name]}" for name in libraries)
    lines = [
        "# Forms: what they gain in time at a given number of multiply-accumulates",
        "",
        "Made by `python -m benchmarks.forms`.",
        "",
        "One node alone, as the pass writes it; `speed` is the dense node's time over that of the form, the median of",
        "interleaved rounds, on one thread, in the processor's time. If time were proportional to MACs, a form at a",
        "share of them would be 1 / share times as fast. Ranks are multiples of 16, which is why the MACs of some miss",
        "the share by up to 15 %. This says nothing of accuracy, in which the forms differ at equal MACs too.",
        "",
        f"Measured on {data['date']}: {data['machine']}; {versions}.",
        "",
        "## Which form is fastest",
        "",
        *_winners(data["shapes"]),
        "",
        "## How much of the MACs' ratio each form turns into time",
        "",
        *_efficiency(data["shapes"]),
        "",
    ]
    for shape in data["shapes"]:
        lines += _shape(shape)
    return "\n".join(lines)


def _shares(shapes: Sequence[Row]) -> list[float]:
    return sorted({result["asked"] for shape in shapes for result in shape["forms"]}, reverse=True)


def _forms(shapes: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(result["form"] for shape in shapes for result in shape["forms"]))


def _winners(shapes: Sequence[Row]) -> list[str]:
    """The fastest form of each shape at each share; those whose interval reaches its own are named beside it."""
    shares = _shares(shapes)
    lines = [_row(["node", *(f"MACs {share:g}" for share in shares)]), _row(["---"] * (1 + len(shares)))]
    rows = ([shape["title"], *(_winner(shape["forms"], share) for share in shares)] for shape in shapes)
    return [*lines, *map(_row, rows)]


def _winner(results: Sequence[Row], share: float) -> str:
    found = sorted((r for r in results if r["asked"] == share), key=lambda r: -r["speedup"])
    if not found:
        return ""
    best = found[0]
    tied = [r["form"] for r in found[1:] if r["high"] >= best["low"]]
    return f"{best['form']} {best['speedup']:.2f}x" + (f" (~ {', '.join(tied)})" if tied else "")


def _efficiency(shapes: Sequence[Row]) -> list[str]:
    """The geometric mean over the shapes of speed times the share of MACs: 1 where time is proportional to MACs."""
    shares = _shares(shapes)
    lines = [_row(["form", *(f"MACs {share:g}" for share in shares)]), _row(["---"] * (1 + len(shares)))]
    for form in _forms(shapes):
        cells = []
        for share in shares:
            reached = [
                result["speedup"] * result["macs"]
                for shape in shapes
                for result in shape["forms"]
                if (result["form"], result["asked"]) == (form, share)
            ]
            mean = math.exp(sum(map(math.log, reached)) / len(reached)) if reached else None
            cells.append("" if mean is None else f"{mean:.2f} of {len(reached)} nodes")
        lines.append(_row([form, *cells]))
    return lines


def _shape(shape: Row) -> list[str]:
    lines = [f"## {shape['title']}", "", f"Dense: {shape['dense_ms']:.3f} ms.", ""]
    lines += [_row(["form", "rank", "MACs", "speed", "95 %"]), _row(["---"] * 5)]
    for result in shape["forms"]:
        interval = f"{result['low']:.2f} to {result['high']:.2f}"
        cells = [result["form"], f"{result['rank']}", f"{result['macs']:.2f}", f"{result['speedup']:.2f}x", interval]
        lines.append(_row(cells))
    return [*lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
