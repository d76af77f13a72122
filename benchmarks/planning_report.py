"""The planning benchmark's results as Markdown tables, and what they say about its goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BALF = "whitened, energy ranks"
WHOLE = "the program: all forms, refined"
PLANNERS = ("planner, fast", "planner, full", WHOLE)
PASSES = 25
"""The goal for a default run, in passes of the original."""

SAME = 1.02
"""Errors whose ratio is within this count as equal."""

COST_TITLES = {"parameters": "kept parameters", "macs": "kept MACs"}

Row = Mapping[str, Any]


def markdown(data: Row) -> str:
    """The whole report."""
    lines = [
        "# Planning: what a model loses at a given size",
        "",
        "Made by `python -m benchmarks.planning`.",
        "",
        "`error` is the relative L2 error of the model's outputs, on samples that calibration did not see. `speed` is",
        "the original's latency over the compressed model's, the median of interleaved pairs with its 95 % interval.",
        "All ways but the last write the same form; they differ in the factors, and in what is added up to choose the",
        "ranks:",
        "",
        "- plain SVD, RSVD and RSI (as published, no oversampling): factors nearest to the weight; energy ranks.",
        "- whitened, energy ranks: the recipe of BALF (arXiv 2509.25136), re-implemented: factors nearest in what they",
        "  compute on the calibration inputs, ranks by relative energy in that norm.",
        "- planner: this project's; whitened, ranks by each weight's measured effect on the outputs: `fast`, `full`.",
        "  It adds up measured^trust x tail^(1 - trust); whole models on calibration feeds decide which trust.",
        f"- {WHOLE}: `compress` for size with its defaults; its forms compete, and its factors are refined.",
        "",
    ]
    for model in data["models"]:
        lines += _model(model)
    return "\n".join(lines)


def _model(model: Row) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in model["versions"].items() if version)
    lines = [f"## {model['model']}", "", f"{model['data'][0].upper()}{model['data'][1:]}.", ""]
    lines += [f"Measured on {model['date']}: {model['machine']}; {versions}.", ""]
    lines += [f"Uncompressed: {_metrics(model['metrics'])}.", ""]
    lines += [*verdicts(model), ""]
    for cost in dict.fromkeys(point["cost"] for point in model["points"]):
        points = [point for point in model["points"] if point["cost"] == cost]
        lines += [*_error_table(points, COST_TITLES[cost]), ""]
        lines += [*_trust_table(points, COST_TITLES[cost]), ""]
        lines += [*_detail_table(points, COST_TITLES[cost]), ""]
    lines += [*_few_table(model["few"]), ""] if model["few"] else []
    lines += [*_run_table(model["run"]), ""] if model["run"] else []
    return lines


def verdicts(model: Row) -> list[str]:
    """One line for each goal, with what the points say."""
    lines = []
    by_place: dict[tuple[str, float], dict[str, Row]] = {}
    for point in model["points"]:
        by_place.setdefault((point["cost"], point["asked"]), {})[point["variant"]] = point
    for name in PLANNERS:
        worse = [
            f"{share:g} of the {cost} ({ways[name]['error']:.4f}; {_best_other(ways)['variant']}: "
            f"{_best_other(ways)['error']:.4f})"
            for (cost, share), ways in by_place.items()
            if ways[name]["error"] > SAME * _best_other(ways)["error"]
        ]
        count = len(by_place)
        text = f"least error, to 2 %, at {count - len(worse)} of {count} points"
        lines.append(f"- {name}: {text}" + (f"; not at {', '.join(worse)}." if worse else "."))
    for (cost, share), ways in by_place.items():
        if share == 0.6:
            ratios = ", ".join(f"{name} {ways[BALF]['error'] / ways[name]['error']:.2f}" for name in PLANNERS)
            lines.append(
                f"- Error of whitened, energy ranks over the planner's at 0.6 of the {cost} (goal 2): {ratios}."
            )
    if model["run"]:
        run = model["run"]
        refining = sum(seconds for stage, seconds in run["seconds"].items() if stage.startswith("refine"))
        refined = refining / run["pass_seconds"]
        lines.append(
            f"- A default run takes the time of {run['passes']:.1f} passes of the original over the feeds "
            f"given ({run['processor_passes']:.1f} in processor time), {refined:.1f} of them for refinement; all "
            f"else takes {run['passes'] - refined:.1f} (goal {PASSES})."
        )
    return lines


def _best_other(ways: Mapping[str, Row]) -> Row:
    return min((way for name, way in ways.items() if name not in PLANNERS), key=lambda way: float(way["error"]))


def _error_table(points: Sequence[Row], title: str) -> list[str]:
    """Errors alone: a row for each way, a column for each share."""
    shares = list(dict.fromkeys(point["asked"] for point in points))
    errors = {(point["variant"], point["asked"]): point["error"] for point in points}
    lines = [f"| error at {title} | " + " | ".join(f"{share:g}" for share in shares) + " |"]
    lines.append("|---" * (len(shares) + 1) + "|")
    names = dict.fromkeys(point["variant"] for point in points)
    rows = (" | ".join([name, *(f"{errors[name, share]:.4f}" for share in shares)]) for name in names)
    return [*lines, *(f"| {row} |" for row in rows)]


def _trust_table(points: Sequence[Row], title: str) -> list[str]:
    """What each trust that was tried had on the calibration feeds; the one that was taken in bold."""
    tried = [point for point in points if point["trials"]]
    trusts = sorted({trial["trust"] for point in tried for trial in point["trials"]}, reverse=True)
    lines = [f"| calibration error at {title}, by trust | " + " | ".join(f"{trust:g}" for trust in trusts) + " |"]
    lines.append("|---" * (len(trusts) + 1) + "|")
    for point in tried:
        cells = {trial["trust"]: _trial_text(trial) for trial in point["trials"]}
        row = " | ".join(cells.get(trust, "") for trust in trusts)
        lines.append(f"| {point['asked']:g}, {point['variant']} | {row} |")
    return lines


def _trial_text(trial: Row) -> str:
    text = "not measured" if trial["error"] is None else f"{trial['error']:.4f}"
    return f"**{text}**" if trial["chosen"] else text


def _detail_table(points: Sequence[Row], title: str) -> list[str]:
    """Everything of each point."""
    metrics = list(points[0]["metrics"])
    lines = [f"| {title}: asked | kept | way | error | {' | '.join(metrics)} | speed |"]
    lines.append("|---" * (5 + len(metrics)) + "|")
    for point in points:
        figures = " | ".join(f"{point['metrics'][name]:.4f}" for name in metrics)
        speed = f"{point['speedup']:.2f} ({point['speedup_low']:.2f} to {point['speedup_high']:.2f})"
        shares = f"{point['asked']:g} | {point['kept']:.3f}"
        lines.append(f"| {shares} | {point['variant']} | {point['error']:.4f} | {figures} | {speed} |")
    return lines


def _few_table(few: Sequence[Row]) -> list[str]:
    lines = [
        f"Calibrated with 8 samples, {few[0]['asked']:g} of the parameters kept; `alike`: the error on other",
        "samples of the same source:",
        "",
        "| way | alike | error | " + " | ".join(few[0]["metrics"]) + " |",
        "|---" * (3 + len(few[0]["metrics"])) + "|",
    ]
    for way in few:
        figures = " | ".join(f"{value:.4f}" for value in way["metrics"].values())
        lines.append(f"| {way['variant']} | {way['like_error']:.4f} | {way['error']:.4f} | {figures} |")
    return lines


def _run_table(run: Row) -> list[str]:
    lines = [
        f"A default run; one pass of the original over the feeds given takes {run['pass_seconds']:.2f} s:",
        "",
        "| stage | seconds | passes |",
        "|---|---|---|",
    ]
    for stage, seconds in run["seconds"].items():
        lines.append(f"| {stage} | {seconds:.2f} | {seconds / run['pass_seconds']:.1f} |")
    return lines


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
