from __future__ import annotations

from benchmarks.max_drop import Row, markdown
from lowrank_onnx.types import MetricComparison


def test_the_table_counts_what_was_kept_on_unseen_images() -> None:
    metric = MetricComparison("correct", True, 0.95, 0.948, samples=1000, lost=4, gained=2, drop_bound=0.0095)
    rows = [Row("a", 0, 1000, 0.5, 1.2, metric, 0.95, after) for after in (0.945, 0.93)]
    text = markdown(rows, "size")
    assert "| a | 0 | 0.500 | 1.20x | 0.01 | +0.0020 | 0.0095 | +0.0050 | 0.9500 -> 0.9450 |" in text
    assert text.endswith("The drop on unseen images is within 0.01 in 1 of 2 cases.\n")
