"""What the page is made of: sections with text, a figure and tables, for the template to lay out."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.errors import MissingDependencyError, how_to_install


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of cells; `caption` says what the table shows. The first `left` columns hold text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. `figure` is SVG that this package drew; `alt` says in words what it shows."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    figure: str = ""
    alt: str = ""
    tables: tuple[Table, ...] = ()
    command: str = ""


def missing_library() -> MissingDependencyError:
    """What to say where the libraries that make the page aren't there."""
    return MissingDependencyError(
        f"--html needs jinja2 and matplotlib: {how_to_install('html', 'jinja2 matplotlib')}, or use --json"
    )
