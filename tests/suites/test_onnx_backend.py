"""Independent graphs with their own expected outputs: the models that the onnx package ships for its backends.

Every model of ``pytorch-converted`` and ``pytorch-operator`` goes through `compress` twice: at full rank, where the
stored outputs must come back, and at a truncated rank, where the result must run and stay what it was in kind.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lowrank_onnx import compress
from lowrank_onnx.config import Alpha, Config, FixedRank
from lowrank_onnx.errors import ModelError
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.results import CompressionResult

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
BROADCASTS_ALONG_AN_AXIS = "test_operator_pow"
"""Pow of opset 1 with a broadcast axis: neither evaluator here knows it, and the model has no weight."""

MODELS = sorted(
    path.parent
    for suite in ("pytorch-converted", "pytorch-operator")
    for path in (DATA / suite).glob("*/model.onnx")
    if path.parent.name != BROADCASTS_ALONG_AN_AXIS
)
FULL = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd", validate=False)
HALF = Config(budget=Alpha(0.5), allow_larger=True, objective="size", oversampling=0, validate=False)


def stored(directory: Path, kind: str) -> list[np.ndarray]:
    files = sorted(directory.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def run(model: Path, directory: Path) -> list[np.ndarray]:
    """In onnxruntime, or in the onnx package's reference evaluator where that has no kernel for so old an opset."""
    inputs = stored(directory, "input")
    try:
        session = open_session(model)
    except ModelError:
        proto = onnx.load(model)
        names = [
            value.name for value in proto.graph.input if value.name not in {t.name for t in proto.graph.initializer}
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True))))
    return list(session.run(dict(zip((spec.name for spec in session.inputs), inputs, strict=True))).values())


def compressed(model: Path, config: Config, output: Path) -> tuple[CompressionResult, Path]:
    result = compress(model / "model.onnx", config, output=output)
    return result, output if result.status == "written" else model / "model.onnx"


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_full_rank_reproduces_the_stored_outputs(model: Path, tmp_path: Path) -> None:
    result, path = compressed(model, FULL, tmp_path / "full.onnx")
    onnx.checker.check_model(str(path))
    for directory in sorted(model.glob("test_data_set_*")):
        for got, expected in zip(run(path, directory), stored(directory, "output"), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
    assert all(site.rank == min(site.in_features, site.out_features) for site in result.sites)


@pytest.mark.parametrize("form", ["conv_spatial", "conv_input", "conv_tucker"])
def test_convolutions_written_as_chains_reproduce_the_stored_outputs(form: str, tmp_path: Path) -> None:
    config = replace(FULL, budget=FixedRank(rank=10**6), forms=(form,))
    written = 0
    for index, model in enumerate(MODELS):
        result, path = compressed(model, config, tmp_path / f"{index}.onnx")
        written += sum(site.rank is not None for site in result.sites)
        if result.status == "written":
            directory = model / "test_data_set_0"
            for got, expected in zip(run(path, directory), stored(directory, "output"), strict=True):
                np.testing.assert_allclose(
                    got, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(expected).max()))
                )
    assert written >= 10


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_truncated_rank_runs_and_keeps_shapes(model: Path, tmp_path: Path) -> None:
    result, path = compressed(model, HALF, tmp_path / "half.onnx")
    onnx.checker.check_model(str(path))
    directory = model / "test_data_set_0"
    for got, expected in zip(run(path, directory), stored(directory, "output"), strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    for site in result.sites:
        assert site.relative_error is not None
        assert 0.0 <= site.relative_error <= 1.0


def test_the_suites_hold_what_they_are_here_for(tmp_path: Path) -> None:
    """Guards against a vacuous pass: the graphs really have weights of every supported operator, and they are found."""
    found: Counter[str] = Counter()
    for index, model in enumerate(MODELS):
        result, _ = compressed(model, HALF, tmp_path / f"{index}.onnx")
        found.update(site.op_type for site in result.sites if site.rank is not None)
    assert len(MODELS) >= 100
    assert found["Conv"] >= 20
    assert found["Gemm"] >= 1
    assert found["ConvTranspose"] >= 1
