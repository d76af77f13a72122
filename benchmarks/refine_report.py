"""The report of `benchmarks.refine`: tables of errors and times, made from what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_table import table

CURVE_SHARE = 0.45
"""Of the MACs, at which errors over the number of feeds are measured."""

WHITENED, PLANNED, REFINED = "whitened, energy ranks", "planner, fast", "refined"
"""The ways that are compared."""


def markdown(data: Mapping[str, Any]) -> str:
    """The whole report."""
    lines = [
        "# Refinement: factors solved again on the compressed model's own inputs",
        "",
        "Made by `python -m benchmarks.refine`. `error` is the relative L2 error of the model's outputs on samples",
        "that calibration did not see. All ways write the plain form; `refined` starts from the planner's factors and",
        "keeps their ranks.",
        "",
    ]
    for model in data["models"]:
        lines += _model(model)
    return "\n".join(lines)


def _model(model: Mapping[str, Any]) -> list[str]:
    around = model["circumstances"]
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in model["metrics"].items())
    lines = [f"## {model['model']}", "", f"{model['data'][0].upper()}{model['data'][1:]}.", ""]
    lines += [f"Measured on {around['date']}: {around['machine']}. Uncompressed: {metrics}.", ""]
    lines += [verdict(model), ""]
    lines += [_alone(a) for a in model["alone"]]
    names = list(model["metrics"])
    rows = [(f"{point['share']:g}", *_figures(point, names)) for point in model["points"]]
    lines += [*table(("kept MACs", "way", "error", *names), rows), ""]
    if model["curve"]:
        rows = [(str(point["feeds"]), *_figures(point, names)) for point in model["curve"]]
        lines += [f"Over the number of feeds of one sample, at {CURVE_SHARE:g} of the MACs:", ""]
        lines += [*table(("feeds", "way", "error", *names), rows), ""]
    rows = [
        (
            f"{c['share']:g}",
            str(c["given"]),
            str(c["feeds"]),
            f"{c['refined']} of {c['weights']}",
            "" if c["error_before"] is None else f"{c['error_before']:.4f} -> {c['error_after']:.4f}",
            f"{c['pass_seconds']:.3f}",
            f"{c['run_seconds'] / c['pass_seconds']:.1f}",
            f"{c['equation_seconds'] / c['pass_seconds']:.1f}",
            _together(c["together"]),
            f"{c['solve_seconds']:.2f}",
            f"{c['seconds'] / c['pass_seconds']:.1f}",
            f"{c['peak_megabytes']:.0f}",
        )
        for c in model["costs"]
    ]
    head = (
        "kept MACs",
        "feeds given",
        "solved for",
        "refined",
        "held-out error",
        "one pass, s",
        "running",
        "equations",
        "together",
        "solving s",
        "all",
        "peak MB",
    )
    lines += [
        "What the stage took: running the models, adding up equations, both together, and all with solving, in passes",
        "of the original over the feeds given (in feeds that are solved for alone, the passes are a third more); and",
        "its own held-out error. Of three runs, each beside passes of the original, that with the median of both",
        "together is shown, with the lowest and the highest (over the number of feeds there is one run). What the",
        "original returns on the feeds held out isn't counted: the verdict needs it as well. Peak memory is of all",
        "that ran.",
    ]
    return [*lines, "", *table(head, rows), ""]


def _together(runs: Sequence[float]) -> str:
    middle = f"{runs[len(runs) // 2]:.1f}"
    return middle if len(runs) == 1 else f"{middle} ({runs[0]:.1f} to {runs[-1]:.1f})"


def _alone(found: Mapping[str, Any]) -> str:
    text = (
        f"At {found['share']:g} of the MACs, on {found['feeds']} of the judged feeds: the weights replaced one by one, "
        f"their squared errors added up, make {found['one_by_one']:.4f}; all of them as planned "
        f"{found['planned']:.4f}; refined {found['refined']:.4f}."
    )
    if found.get("seen_planned") is not None:
        text += f" On the feeds to calibrate with: planned {found['seen_planned']:.4f}; refined "
        text += f"{found['seen_refined']:.4f}."
    return f"{text}\n"


def _figures(point: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return (point["way"], f"{point['error']:.4f}", *(f"{point['metrics'][name]:.4f}" for name in names))


def verdict(model: Mapping[str, Any]) -> str:
    """How much less error refinement leaves, and whether it is ever worse."""
    pairs, whitened = [], []
    for points in (model["points"], model["curve"]):
        by_way = {(p["way"], p["share"], p["feeds"]): p for p in points}
        refined = [point for point in points if point["way"] == REFINED]
        pairs += [(by_way[PLANNED, point["share"], point["feeds"]], point) for point in refined]
        known = [(by_way.get((WHITENED, point["share"], point["feeds"])), point) for point in refined]
        whitened += [(before, point) for before, point in known if before is not None]
    worse = [f"{r['share']:g} of the MACs with {r['feeds']} feeds" for p, r in pairs if r["error"] > p["error"]]
    text = f"Worse than the planner's at {', '.join(worse)}." if worse else "Nowhere worse than the planner's."
    text = f"{text} Error relative to the planner's: {_ratios(pairs)}."
    if model["curve"]:
        halved = [r["feeds"] for p, r in pairs if r in model["curve"] and r["error"] <= p["error"] / 2]
        enough = f"half of it or less from {min(halved)} feeds on" if halved else "more than half of it with any number"
        text += f" Of the numbers of feeds of one sample at {CURVE_SHARE:g}, what is left is {enough}."
    return f"{text} Relative to whitened factors with energy ranks: {_ratios(whitened)}." if whitened else text


def _ratios(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    return "; ".join(f"{r['error'] / p['error']:.2f} ({r['share']:g}, {r['feeds']} feeds)" for p, r in pairs)
