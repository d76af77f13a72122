"""How Sphinx builds the documentation: ``python -m sphinx -W docs build/docs``."""

from lowrank_onnx import __version__

project = "lowrank-onnx"
author = "the lowrank-onnx authors"
copyright = "2026, the lowrank-onnx authors"  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
nitpicky = False
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
autosummary_generate = False

html_theme = "furo"
html_title = "lowrank-onnx"
html_copy_source = False
html_show_sphinx = False
