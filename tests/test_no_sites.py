from __future__ import annotations

import numpy as np
import onnx
import pytest
from skl2onnx import to_onnx  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression

from lowrank_onnx import compress, inspect
from lowrank_onnx.no_sites import NO_WEIGHT, why_no_sites
from lowrank_onnx.report.compress_text import compress_report
from lowrank_onnx.report.inspect_text import inspect_report
from lowrank_onnx.types import Skipped
from tests.report.rendering import rendered


def _model(*operators: str) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node(operator, ["x"], ["y"]) for operator in operators]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], []))


@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        ((), "it has no nodes"),
        (("Relu", "Abs", "Relu"), "none of its operators (Abs, Relu) multiplies by a stored matrix"),
        (
            ("A", "B", "C", "D", "E", "F", "G"),
            "none of its operators (A, B, C, D, E, F, ...) multiplies by a stored matrix",
        ),
    ],
)
def test_the_operators_are_named(operators: tuple[str, ...], reason: str) -> None:
    assert why_no_sites(_model(*operators), ()) == f"{NO_WEIGHT}: {reason}"


def test_what_was_skipped_has_its_own_reasons() -> None:
    reason = why_no_sites(_model("MatMul"), [Skipped("a", "MatMul", "both inputs are activations")])
    assert reason == f"{NO_WEIGHT}: nodes that could have one were skipped, each for a reason"


def test_a_linear_model_of_scikit_learn_is_told_so_instead_of_zeros() -> None:
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    fitted = LogisticRegression().fit(x, np.arange(40) % 3)
    model = to_onnx(fitted, x[:1], options={"zipmap": False})
    reason = (
        f"{NO_WEIGHT}: none of its operators (LinearClassifier, Normalizer) multiplies by a stored matrix "
        "(ai.onnx.ml is for linear models, trees and kernels, whose numbers are attributes and not matrices)"
    )
    seen, tried = inspect(model), compress(model)
    assert (seen.message, tried.message) == (f"nothing to gain: {reason}", f"nothing to compress: {reason}")
    assert tried.status == "unchanged"
    for report in (rendered(inspect_report(seen)), rendered(compress_report(tried))):
        assert "eligible sites   " not in report
        assert "MACs of eligible" not in report
