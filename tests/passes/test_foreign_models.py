"""Graphs made by others, with their own expected outputs: the converted PyTorch models that come with onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from lowrank_onnx.types import Array
from tests.passes.models import compress, run_ort, run_reference, sites_of
from tests.passes.untouched import changes

DATA = Path(onnx.backend.test.__file__).parent / "data"
MODELS = sorted((*DATA.glob("pytorch-converted/*/model.onnx"), *DATA.glob("pytorch-operator/*/model.onnx")))


def stored(folder: Path, kind: str) -> list[Array]:
    files = sorted(folder.glob(f"test_data_set_0/{kind}_*.pb"), key=lambda file: int(file.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


def test_the_models_are_there_and_many_have_sites() -> None:
    assert len(MODELS) >= 110
    assert sum(bool(sites_of(onnx.load(path))) for path in MODELS) >= 20


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_full_rank_reproduces_the_expected_outputs(path: Path) -> None:
    model = onnx.load(path)
    outcome = compress(model)
    changed = changes(outcome.skeleton, outcome.result.skeleton)
    assert len(changed.get("node", ([], []))[1]) == 2 * len(outcome.sites)
    if not outcome.sites:
        assert changed == {}
        return
    held = {tensor.name for tensor in model.graph.initializer}
    names = [entry.name for entry in model.graph.input if entry.name not in held]
    feed = dict(zip(names, stored(path.parent, "input"), strict=True))
    expected = stored(path.parent, "output")
    # onnxruntime has no kernel for Gemm below opset 7.
    old_gemm = model.opset_import[0].version < 7 and any(node.op_type == "Gemm" for node in model.graph.node)
    found = (run_reference if old_gemm else run_ort)(outcome.model, feed)
    assert len(found) == len(expected) > 0
    for y, z in zip(expected, found, strict=True):
        assert y.shape == z.shape
        assert np.linalg.norm(y - z) <= 1e-5 * np.linalg.norm(y)
