from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowrank_onnx import Config, KeepParams, UsageError
from lowrank_onnx.config import MaxError
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.integrations.onnx_ir import LowRankPass
from tests.tiny_model import classifier, write_classifier

HALF = Config(budget=KeepParams(0.5), objective="size")


def test_it_runs_between_other_passes(tmp_path: Path) -> None:
    _, feeds = write_classifier(tmp_path)
    compress = LowRankPass(HALF, feeds=feeds)
    given = ir.from_proto(classifier())
    done = ir.passes.Sequential(RemoveUnusedNodesPass(), ir.passes.functionalize(compress))(given)
    assert done.modified
    assert [node.op_type for node in done.model.graph].count("MatMul") == 2
    assert compress.result is not None
    assert compress.result.status == "written"
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    ir.save(done.model, tmp_path / "new.onnx")
    ir.save(given, tmp_path / "old.onnx")
    new, old = (open_session(tmp_path / name).run({"x": x})["y"] for name in ("new.onnx", "old.onnx"))
    assert np.abs(new - old).max() < 0.2
    assert np.array_equal(new.argmax(1), old.argmax(1))


def test_the_given_model_stays_as_it_is() -> None:
    given = ir.from_proto(classifier())
    done = LowRankPass(HALF)(given)
    assert done.model is not given
    assert [node.op_type for node in given.graph].count("MatMul") == 1


def test_a_result_that_does_not_hold_gives_a_copy_of_the_model() -> None:
    given = ir.from_proto(classifier())
    compress = LowRankPass(Config(budget=MaxError(1e-9), objective="size"))
    done = compress(given)
    assert ir.to_proto(done.model) == ir.to_proto(given)
    assert not done.modified
    assert compress.result is not None
    assert compress.result.status == "unchanged"


def test_a_wrong_use_is_an_error_of_this_package(tmp_path: Path) -> None:
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(LowRankPass(HALF, feeds=tmp_path / "nowhere.npz"))(ir.from_proto(classifier()))
    assert isinstance(caught.value.__cause__, UsageError)
