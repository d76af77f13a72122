"""The results of planning with pairs alone and with all forms as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_table import table

Row = Mapping[str, Any]
PAIRS, ALL = "pairs alone", "all forms"
SAME = 1.02
"""Errors whose ratio is within this count as equal."""


def markdown(data: Row) -> str:
    """The whole report."""
    lines = [
        "# Forms in the plan: pairs alone against all forms",
        "",
        "Made by `python -m benchmarks.forms_planning`.",
        "",
        "Both plans are made from the same calibration feeds, without refinement: those of a share for size, those of",
        "a largest error for latency. `error` is the relative L2 error of the outputs on samples that calibration did",
        "not see; `speed` is the original's latency over the compressed model's, the median of interleaved pairs with",
        "its 95 % interval; `faster by` is the same for pairs alone over all forms.",
        "",
    ]
    for model in data["models"]:
        lines += _model(model)
    return "\n".join(lines)


def _model(model: Row) -> list[str]:
    around = model["circumstances"]
    names = list(model["metrics"])
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in model["metrics"].items())
    lines = [f"## {model['model']}", "", f"{model['data'][0].upper()}{model['data'][1:]}. Uncompressed: {metrics}.", ""]
    lines += [f"Measured on {around['date']}: {around['machine']}.", "", verdict(model["points"]), ""]
    lines += table(
        ("kept", "plan", "error", *names, "speed", "faster by", "weights by form", "seconds to compress"),
        [row for point in model["points"] for row in _rows(point, names)],
    )
    return [*lines, ""]


def _rows(point: Row, names: Sequence[str]) -> list[tuple[str, ...]]:
    kept = budget_text(point["limited"], point["asked"])
    rows = []
    for name, way in point["ways"].items():
        if way is None:
            rows.append((kept, name, "out of reach", *[""] * (len(names) + 4)))
            continue
        figures = (f"{way['metrics'][metric]:.4f}" for metric in names)
        forms = ", ".join(f"{form} {count}" for form, count in sorted(way["forms"].items()))
        against = _speed(point["against"]) if name == ALL and point["against"] else ""
        row = (kept, name, f"{way['error']:.4f}", *figures, _speed(way["speed"]), against, forms)
        rows.append((*row, f"{way['seconds']:.0f}"))
    return rows


def _speed(speed: Row) -> str:
    return f"{speed['speedup']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"


def verdict(points: Sequence[Row]) -> str:
    """Whether all forms are anywhere worse: the ratio of the errors at a share, of the times within an error."""
    both = [point for point in points if all(point["ways"].values())]
    shares, errors = (
        [point for point in both if (point["limited"] == "error") == limited_error] for limited_error in (False, True)
    )
    ratios = [(point, point["ways"][ALL]["error"] / max(point["ways"][PAIRS]["error"], 1e-30)) for point in shares]
    worse = [_at(point) for point, ratio in ratios if ratio > SAME]
    worse += [_at(point) for point in errors if point["against"]["high"] < 1.0]
    text = f"Worse with all forms at {'; '.join(worse)}." if worse else "Nowhere worse with all forms."
    if ratios:
        text += (
            f" Error relative to pairs alone: {', '.join(f'{ratio:.2f} ({_at(point)})' for point, ratio in ratios)}."
        )
    if errors:
        faster = ", ".join(f"{_speed(point['against'])} ({_at(point)})" for point in errors)
        text += f" Faster than pairs alone by {faster}."
    only = [_at(point) for point in points if point["ways"][ALL] and not point["ways"][PAIRS]]
    return f"{text} Only with all forms within reach: {'; '.join(only)}." if only else text


def _at(point: Row) -> str:
    return budget_text(point["limited"], point["asked"])


def budget_text(limited: str, asked: float) -> str:
    """A budget in words."""
    return f"error at most {asked:g}" if limited == "error" else f"{asked:g} of the {limited}"
