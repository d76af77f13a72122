"""How Sphinx builds the documentation: ``python -m sphinx -W docs build/docs``."""

import re
from typing import Any

from lowrank_onnx import __version__

project = "lowrank-onnx"
author = "the lowrank-onnx authors"
copyright = "2026, the lowrank-onnx authors"  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
nitpicky = False
smartquotes = False
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
autosummary_generate = False

html_theme = "furo"
html_title = "lowrank-onnx"
html_copy_source = False
html_show_sphinx = False


_SECTIONS = ("Parameters", "Attributes", "Returns", "Raises")


def _put_descriptions_below(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``name : description`` as numpydoc wants it, which takes what stands behind the colon for a type."""
    section = ""
    done: list[str] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if below.startswith("---"):
            section = line.strip()
        entry = re.fullmatch(r"(\S[^:]*) : (.+)", line) if section in _SECTIONS else None
        done += [line] if entry is None else [entry[1], f"    {entry[2]}"]
    lines[:] = done


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _put_descriptions_below, priority=400)
