"""The zoo's results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_table import table
from benchmarks.peers import AIDGE, INT8, OURS_INT8, RECIPES
from benchmarks.saved_results import measured_on

OURS = "this program"

Row = Mapping[str, Any]


def markdown(originals: Mapping[str, Row], points: Sequence[Row]) -> str:
    """The whole report: a table for each model, in the order of their names."""
    lines = [
        "# Real models on real tasks",
        "",
        "Made by `python -m benchmarks.zoo`. Every model is compressed with default options to a share of the MACs of",
        "the weights that can be factorized, with no retraining. `error` is the relative L2 error of the outputs on",
        "feeds that calibration held out, of raw values for every way; Whisper's decoder is planned with `--logits`,",
        "which takes its rows' means off. `speed` is the original's latency over the compressed model's, the median of",
        "interleaved pairs with its 95 % interval. Where the program found nothing that is measurably faster, it was",
        "run for size alone, and the row says so. Before int8 it is told to leave out the pivoted form, whose large",
        "coefficients 8 bits can't hold. Other ways, on the same weights and feeds:",
        "",
        *(f"- {recipe.name}: {recipe.source}." for recipe in RECIPES),
        "",
        AIDGE,
        "",
    ]
    for name in sorted(originals):
        own = sorted((point for point in points if point["model"] == name), key=_place)
        lines += _model(originals[name], own)
    return "\n".join(lines)


def _place(point: Row) -> tuple[float, int]:
    """By falling share; at each this program first, then the others in their order."""
    order = [OURS, OURS_INT8, *(recipe.name for recipe in RECIPES)]
    return -point["share"], order.index(point["way"])


def _model(original: Row, points: Sequence[Row]) -> list[str]:
    metrics = list(original["metrics"])
    better = "lower is better" if original["lower_is_better"] else "higher is better"
    head = ["kept MACs", "way", *metrics, "parameters", "file", "MACs", "error", "speed", "latency"]
    rows = [
        ["all", "original", *(f"{original['metrics'][name]:.4f}" for name in metrics), *_size(original), "1.000"]
        + [""] * 3,
        *(_point(point, metrics) for point in points),
    ]
    said = f"{original['data'][0].upper()}{original['data'][1:]}; {better}."
    lines = [f"## {original['model']}", "", said, "", *table(head, rows), ""]
    lines += [f"- {verdict}" for verdict in (*verdicts(points, original), *at_equal_error(points))]
    lines += [f"- {p['way']} at {p['share']:g}: {p['message']}" for p in points if not p["metrics"]]
    return [*lines, "", measured_on([dict(row) for row in (original, *points)]), ""]


def verdicts(points: Sequence[Row], original: Row) -> list[str]:
    """Who has the least error, the highest speed, and better figures than this program, at each share with peers.

    int8 keeps other bytes and is apart.
    """
    lines = []
    for share in dict.fromkeys(point["share"] for point in points):
        ways = {p["way"]: p for p in points if p["share"] == share and p["metrics"]}
        peers = [p for name, p in ways.items() if name not in (OURS, OURS_INT8, INT8)]
        if OURS not in ways or not peers:
            continue
        best = min(peers, key=lambda point: float(point["error"]))
        fastest = max(peers, key=lambda point: float(point["speedup"]))
        ours = ways[OURS]
        error, speed = best["error"] / ours["error"], fastest["speedup"] / ours["speedup"]
        lines.append(
            f"At {share:g} the error of the best peer ({best['way']}) is {error:.2f} times this program's; the speed "
            f"of the fastest ({fastest['way']}) {speed:.2f} times. {_better_figures(ours, peers, original)}"
        )
    return lines


def _better_figures(ours: Row, peers: Sequence[Row], original: Row) -> str:
    sign = -1.0 if original["lower_is_better"] else 1.0
    better = [
        f"{peer['way']}'s {name} ({peer['metrics'][name]:.4f}, this program {ours['metrics'][name]:.4f})"
        for name in original["metrics"]
        for peer in peers
        if sign * peer["metrics"][name] > sign * ours["metrics"][name]
    ]
    return f"Better than this program's: {', '.join(better)}." if better else "No peer has a better figure."


def at_equal_error(points: Sequence[Row]) -> list[str]:
    """How many of the peers' models this program outruns at an error that is no larger, and which it doesn't.

    For each of them the fastest of this program's models, at any of its budgets, whose error is at most that one's.
    Slower is only what is so beyond the 95 % intervals of both.
    """
    written = [point for point in points if point["metrics"]]
    own = [point for point in written if point["way"] in (OURS, OURS_INT8)]
    peers = [point for point in written if point["way"] not in (OURS, OURS_INT8)]
    if not own or not peers:
        return []
    faster, relations = 0, ("within the intervals of", "slower than", "not measured at the error of")
    found: dict[str, list[str]] = {relation: [] for relation in relations}
    for peer in peers:
        matched = [point for point in own if point["error"] <= peer["error"]]
        if not matched:
            found[relations[2]].append(_named(peer))
            continue
        best = max(matched, key=lambda point: float(point["speedup"]))
        ratio = best["speedup"] / peer["speedup"]
        faster += ratio >= 1.0
        if ratio < 1.0:
            relation = relations[0 if best["speedup_high"] >= peer["speedup_low"] else 1]
            found[relation].append(f"{_named(peer)} ({ratio:.2f} times, {_named(best)})")
    said = [f"at least as fast as {faster} of {len(peers)} other models"]
    said += [f"{relation} {', '.join(names)}" for relation, names in found.items() if names]
    return [f"At no larger an error this program is {'; '.join(said)}."]


def _named(point: Row) -> str:
    return INT8 if point["way"] == INT8 else f"{point['way']} at {point['share']:g}"


def _point(point: Row, metrics: Sequence[str]) -> list[str]:
    share = "" if point["way"] == INT8 else f"{point['share']:g}" + (" (quick)" if point["size"] == "quick" else "")
    way = point["way"] + (" (for size)" if point["objective"] == "size" else "")
    if not point["metrics"]:
        return [share, way, *["not written"] * len(metrics), *[""] * 6]
    speed = f"{point['speedup']:.2f} ({point['speedup_low']:.2f}-{point['speedup_high']:.2f})"
    latency = f"{point['milliseconds_before']:.3g} -> {point['milliseconds']:.3g} ms"
    macs = "" if point["macs_kept"] is None else f"{point['macs_kept']:.3f}"
    figures = [f"{point['metrics'][name]:.4f}" for name in metrics]
    return [share, way, *figures, *_size(point), macs, f"{point['error']:.4f}", speed, latency]


def _size(row: Row) -> list[str]:
    return [f"{row['parameters'] / 1e6:.2f} M", f"{row['file_bytes'] / 1e6:.1f} MB"]
