"""Figures as inline SVG, drawn by matplotlib without a display.

Colours are placeholders that become CSS variables, so that one drawing serves a light and a dark page and the printer.
Text stays text: it can be selected, searched and read aloud.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html.parts import missing_library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIABLES = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--rule)",
    "#010206": "var(--before)",
    "#010207": "var(--after)",
    "#010208": "var(--mark)",
}
INK, MUTED, RULE, BEFORE, AFTER, MARK = _VARIABLES

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lowrank-onnx",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    # A model's names are text, never mathematics.
    "text.parse_math": False,
}

_LONGEST_LABEL = 34
_PANELS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart: a figure before and after, in the same unit."""

    label: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Curve:
    """How the error of one weight falls with its rank, and the rank that was taken (None: it stayed dense)."""

    label: str
    points: tuple[tuple[int, float], ...]
    rank: int | None


@dataclass(frozen=True, slots=True)
class Point:
    """One model that was tried: what it costs, how far off it is, and whether it is the one that was taken."""

    cost: float
    error: float
    chosen: bool
    label: str = ""


def paired_bars(bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars, before above after, the first at the top."""
    with _figure(7.2, 0.7 + 0.42 * len(bars)) as (figure, out):
        axes = figure.subplots()
        rows = range(len(bars))
        axes.barh([row - 0.19 for row in rows], [bar.before for bar in bars], 0.34, color=BEFORE, label="before")
        axes.barh([row + 0.19 for row in rows], [bar.after for bar in bars], 0.34, color=AFTER, label="after")
        _name_rows(axes, [bar.label for bar in bars])
        axes.set_xlabel(unit)
        # Above the bars, so that it hides none of them however few there are.
        figure.legend(loc="outside upper left", ncols=2)
    return out[0]


def single_bars(labels: Sequence[str], values: Sequence[float], unit: str) -> str:
    """Horizontal bars of one figure, the first at the top."""
    with _figure(7.2, 0.7 + 0.28 * len(labels)) as (figure, out):
        axes = figure.subplots()
        axes.barh(range(len(values)), values, 0.6, color=AFTER)
        _name_rows(axes, labels)
        axes.set_xlabel(unit)
    return out[0]


def error_curves(curves: Sequence[Curve]) -> str:
    """Small panels of error over rank, with a line where the rank was taken."""
    columns = min(_PANELS_IN_A_ROW, len(curves))
    rows = -(-len(curves) // columns)
    with _figure(7.2, 1.85 * rows + 0.2) as (figure, out):
        figure.set_layout_engine("constrained", h_pad=0.08)
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, curve in zip(panels, curves, strict=False):
            axes.plot(*zip(*curve.points, strict=True), color=AFTER, linewidth=1.6)
            if curve.rank is not None:
                axes.axvline(curve.rank, color=MARK, linewidth=1.2, linestyle="--")
            axes.set_title(_short(curve.label), loc="left")
            axes.set_ylim(bottom=0.0)
            axes.set_xlim(left=0.0)
            axes.locator_params(axis="x", nbins=4, integer=True)
        for axes in list(figure.axes)[len(curves) :]:
            axes.set_axis_off()
        figure.supxlabel("rank r", fontsize=9)
        figure.supylabel("relative error", fontsize=9)
    return out[0]


def trade_off(points: Sequence[Point], cost: str) -> str:
    """Error over cost of every model that was tried, by rising cost; the one taken stands out."""
    ordered = sorted(points, key=lambda point: point.cost)
    with _figure(7.2, 3.0) as (figure, out):
        axes = figure.subplots()
        axes.plot([p.cost for p in ordered], [p.error for p in ordered], color=BEFORE, linewidth=1, marker="o")
        for point in ordered:
            if point.chosen:
                axes.plot([point.cost], [point.error], color=MARK, marker="D", markersize=9, linestyle="")
            if point.label:
                axes.annotate(point.label, (point.cost, point.error), xytext=(5, 6), textcoords="offset points")
        axes.set_xlabel(cost)
        axes.set_ylabel("relative error of the outputs")
        axes.set_ylim(bottom=0.0)
    return out[0]


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _short(label: str) -> str:
    """The end of a long name: it is the part that tells two apart."""
    text = printable(label)
    return text if len(text) <= _LONGEST_LABEL else "…" + text[-_LONGEST_LABEL + 1 :]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw on (sizes in inches); when the block ends, its SVG is the one element of the list."""
    matplotlib = _matplotlib()
    out: list[str] = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Text is left to the browser, which has the glyphs that the font used for layout lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure, out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    out.append(_inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    """An SVG document as an element of a page: without its prologue, in the page's colours, as wide as it fits."""
    element = svg[svg.index("<svg") :]
    # Identifiers are unique in a page only if they carry something of their drawing.
    prefix = f"f{hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()}-"
    element = re.sub(r'((?: id=|href=)"#?|url\(#)', rf"\1{prefix}", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element, count=1)
    for placeholder, variable in _VARIABLES.items():
        element = element.replace(placeholder, variable)
    return element.replace("'DejaVu Sans', sans-serif", "inherit").strip()


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise missing_library() from error
    return matplotlib
