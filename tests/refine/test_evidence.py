"""Evidence from the original's inputs, which W multiplies once it is added up, against that from its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.refine.evidence import find_evidence
from lowrank_onnx.refine.known import Evidence, KeptRows
from lowrank_onnx.refine.readings import StepReadings
from lowrank_onnx.refine.target import find_target
from tests.passes.models import make_model, value, weight
from tests.refine.builders import WIDTH, inputs, opened, workshop


def widening(*widths: int) -> onnx.ModelProto:
    """A product and a Relu, and products of that, side by side."""
    weights = {"w0": weight(WIDTH, WIDTH, seed=9)} | {
        f"v{index}": weight(WIDTH, width, seed=index) for index, width in enumerate(widths)
    }
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["m"]),
        h.make_node("Relu", ["m"], ["r"]),
        *(h.make_node("MatMul", ["r", f"v{index}"], [f"y{index}"]) for index in range(len(widths))),
    ]
    outputs = [value(f"y{index}", ["n", width]) for index, width in enumerate(widths)]
    return make_model(nodes, [value("x", ["n", WIDTH])], outputs, weights)


def evidence(model: onnx.ModelProto, rows: int, directory: Path) -> tuple[Evidence, StepReadings]:
    """What is known of the second step, and what was read of the original for it."""
    shop, choices = workshop(model, inputs(16, rows), directory, 5)
    models, steps = opened(shop, choices)
    step = steps.steps[1]
    models.ahead.run_to(1)
    models.compressed.run_to(step.cut)
    targets = [find_target(shop.model, read_dataflow(model), member) for member in step.members]
    found = find_evidence(models, 1, step, targets, lambda feed: feed % 4 == 0)
    models.close()
    return found, models.readings[1]


@pytest.mark.parametrize("apart", [0, 768], ids=["divided among threads", "each part in a thread"])
@pytest.mark.parametrize("rows", [48, 1], ids=["equations", "few rows that validate"])
@pytest.mark.parametrize("few", [False, True], ids=["added up", "kept"])
def test_inputs_say_what_outputs_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, few: bool, apart: int
) -> None:
    monkeypatch.setattr("lowrank_onnx.refine.regression.MULTIPLIED_APART", apart)
    monkeypatch.setattr("lowrank_onnx.refine.evidence.are_few", lambda *sizes: few)
    found = []
    for cheaper in (True, False):
        monkeypatch.setattr(
            "lowrank_onnx.refine.readings._is_cheaper_afterwards", lambda *_, cheaper=cheaper, **__: cheaper
        )
        (tmp_path / str(cheaper)).mkdir()
        known, readings = evidence(widening(30, 40), rows, tmp_path / str(cheaper))
        assert (readings.outputs, readings.afterwards) == (not cheaper, cheaper)
        found.append(known)
    for part in ("fit", "validate", "judge"):
        ours, others = (getattr(one, part) for one in found)
        assert type(ours) is type(others)
        assert ours.rows == others.rows > 0
        names = ("inputs", "targets") if isinstance(ours, KeptRows) else ("gram", "cross", "energy")
        assert isinstance(ours, KeptRows) is (few or (part == "judge" and rows == 1))
        for name in names:
            np.testing.assert_allclose(getattr(ours, name), getattr(others, name), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("widths", "rows", "cheaper"),
    [((60,), 48, True), ((20,), 48, False), ((20, 20), 48, True), ((60,), 2, False)],
    ids=["wide", "narrow", "wide together", "wide, of few rows"],
)
@pytest.mark.parametrize("rounded", [False, True], ids=["outputs", "rounded outputs"])
def test_inputs_are_added_up_where_that_takes_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...], rows: int, cheaper: bool, rounded: bool
) -> None:
    if rounded:  # row by row, each of X would have to be multiplied, which takes as much time again
        monkeypatch.setattr("lowrank_onnx.refine.readings.EXACT", ())
        widths = tuple(width // 2 for width in widths)
    readings = evidence(widening(*widths), rows, tmp_path)[1]
    assert readings.afterwards is cheaper
    assert readings.outputs is not (cheaper or rounded)
