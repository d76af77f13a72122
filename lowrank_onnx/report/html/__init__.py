"""The report as one self-contained HTML page: no network, no scripts, light and dark, made to be read and printed."""

from lowrank_onnx.report.html.page import compress_page, sweep_page, write_page

__all__ = ["compress_page", "sweep_page", "write_page"]
