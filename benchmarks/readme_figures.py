"""The figures beside the README's tables: the same bytes for the same results and version of Matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


@contextmanager
def _figure(target: Path, count: int) -> Iterator[list[Axes]]:
    """A row of axes that is saved at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": target.name, "svg.fonttype": "none", "font.size": 8}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4 * count, 3), layout="constrained")
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        yield axes
        for place in axes:
            place.grid(True, alpha=0.3)
            place.legend(fontsize=6, frameon=False)
        figure.savefig(target, metadata={"Date": None})


def plot_planning(data: Row, target: Path) -> None:
    """Output error against the share that was kept, for each model and cost."""
    places = [(m, cost) for m in data["models"] for cost in dict.fromkeys(p["cost"] for p in m["points"])]
    with _figure(target, len(places)) as axes:
        for place, (model, cost) in zip(axes, places, strict=True):
            for way in dict.fromkeys(point["variant"] for point in model["points"]):
                points = sorted(
                    (p["kept"], p["error"]) for p in model["points"] if (p["variant"], p["cost"]) == (way, cost)
                )
                x, y = zip(*points, strict=True)
                place.semilogy(x, y, "o-", ms=3, lw=1, label=way)
            place.set_title(f"{model['model']}: error against share of {cost} kept")


def plot_accuracy(saved: Row, target: Path) -> None:
    """Top-1 against the share of the parameters that was kept, for each model."""
    results = [row for key, row in sorted(saved.items()) if key.startswith("accuracy/")]
    models = list(dict.fromkeys(row["model"] for row in results))
    if not models:
        return
    with _figure(target, len(models)) as axes:
        for place, model in zip(axes, models, strict=True):
            rows = [
                one
                for result in results
                if result["model"] == model
                for one in result["rows"]
                if one["meaning"] == "parameters" and one["way"] != "int8"
            ]
            for way in dict.fromkeys(row["way"] for row in rows):
                x, y = zip(*sorted((row["kept"], row["top1"]) for row in rows if row["way"] == way), strict=True)
                wide = 2.5 if way == "this planner" else 1.0
                place.plot(x, y, "o-", ms=3, lw=wide, label=way)
            place.set_title(f"{model}: top-1 against share of parameters kept")
