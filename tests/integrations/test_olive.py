"""Against the installed Olive, with one command:

    pip install -e '.[cpu,dev,olive]' && python -m pytest tests/integrations/test_olive.py

Olive needs PyTorch, which is too large to be installed for every run of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lowrank_onnx.evaluate import open_session
from tests.tiny_model import classifier, write_classifier

if importlib.util.find_spec("olive") is None:
    pytest.skip("needs olive-ai: pip install -e '.[olive]'", allow_module_level=True)

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the many packages that Olive imports
    from olive.data.registry import Registry
    from olive.exception import OlivePassError
    from olive.hardware import AcceleratorSpec
    from olive.model import ONNXModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.workflows import run

    from lowrank_onnx.integrations.olive import LowRankCompression, package_config

HALF = {"budget": "keep_params", "amount": 0.5, "objective": "size", "effort": "fast"}


@pytest.fixture
def run_pass(tmp_path: Path) -> Callable[..., Any]:
    model, feeds = write_classifier(tmp_path)

    def run_one(handler: Any = None, **options: Any) -> Any:
        config = {**HALF, "feeds": str(feeds), **options}
        found = create_pass_from_dict(LowRankCompression, config, disable_search=True)
        return found.run(handler or ONNXModelHandler(str(model)), str(tmp_path / "out"))

    return run_one


def operators(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_result_is_a_model_of_olive(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    done = run_pass()
    assert operators(done.model_path).count("MatMul") == 2
    assert done.model_attributes["lowrank_onnx"]["status"] == "written"
    session = done.prepare_session(execution_providers="CPUExecutionProvider")
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    (new,) = session.run(None, {"x": x})
    old = open_session(tmp_path / "model.onnx").run({"x": x})["y"]
    assert np.array_equal(new.argmax(1), old.argmax(1))


def test_attributes_of_the_model_are_kept(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    given = ONNXModelHandler(str(tmp_path / "model.onnx"), model_attributes={"task": "classify"})
    assert run_pass(given).model_attributes["task"] == "classify"
    assert given.model_attributes == {"task": "classify"}


def test_a_model_with_external_data_stays_one(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(classifier(), tmp_path / "in" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    done = run_pass(ONNXModelHandler(str(tmp_path / "in"), onnx_file_name="m.onnx"))
    assert Path(done.get_resource("model_path")).is_dir()
    assert Path(done.model_path).name == "model.onnx"
    assert len(list(Path(done.model_path).parent.iterdir())) == 2
    assert operators(done.model_path).count("MatMul") == 2


def test_a_result_that_breaks_a_gate_leaves_the_model_as_it_is(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    done = run_pass(amount=0.2, max_error=1e-6)
    assert done.model_path == str(tmp_path / "model.onnx")
    assert done.model_attributes["lowrank_onnx"]["status"] == "rejected"
    assert "error" in done.model_attributes["lowrank_onnx"]["message"]


def test_forms_are_those_that_are_asked_for(run_pass: Callable[..., Any]) -> None:
    assert "Concat" in operators(run_pass(forms=["pivoted"]).model_path)
    assert "Concat" not in operators(run_pass(forms=["pair"]).model_path)


def test_logits_are_those_that_are_named(run_pass: Callable[..., Any]) -> None:
    assert run_pass(logits=["y"]).model_attributes["lowrank_onnx"]["status"] == "written"
    with pytest.raises(ValueError, match="--logits scores: no output has that name"):
        run_pass(logits=["scores"])


def test_a_wrong_use_stops_the_workflow(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.npz: no such file"):
        run_pass(feeds=str(tmp_path / "nowhere.npz"))
    with pytest.raises(ValueError, match="budget 'size': expected one of max_error, keep_params"):
        run_pass(budget="size")
    with pytest.raises(ValueError, match="feeds and data_config"):
        run_pass(data_config={"name": "calibration", "type": "DummyDataContainer"})
    with pytest.raises(ValueError, match="--forms square"):
        run_pass(forms=["square"])
    with pytest.raises(ValueError, match="objective"):
        run_pass(objective="beauty")


def test_a_model_that_cannot_be_read_is_a_failed_trial(run_pass: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08")
    with pytest.raises(OlivePassError, match=r"broken\.onnx"):
        run_pass(ONNXModelHandler(str(tmp_path / "broken.onnx")))


def test_without_an_amount_each_budget_has_its_own(tmp_path: Path) -> None:
    def amount(budget: str) -> float:
        return float(create_pass_from_dict(LowRankCompression, {"budget": budget}, disable_search=True).config.amount)

    assert amount("keep_params") == 0.6
    assert amount("max_error") == 0.05
    assert amount("speedup") == 1.3


def test_what_is_faster_depends_on_the_provider() -> None:
    spec = AcceleratorSpec("gpu", "CUDAExecutionProvider")
    found = create_pass_from_dict(LowRankCompression, HALF, disable_search=True, accelerator_spec=spec)
    assert not found.is_accelerator_agnostic(spec)


def test_the_package_configuration_is_olives_with_one_more_pass() -> None:
    found = OlivePackageConfig.model_validate(json.loads(json.dumps(package_config())))
    assert found.import_pass_module("LowRankCompression") is LowRankCompression
    assert set(found.passes) == {*OlivePackageConfig.load_default_config().passes, "lowrankcompression"}


def random_rows(**_: Any) -> list[tuple[dict[str, Any], int]]:
    draws = np.random.default_rng(3).standard_normal((16, 128)).astype(np.float32)
    return [({"x": row}, 0) for row in draws]


Registry.register_dataset("random_rows")(random_rows)
ROWS = {"name": "rows", "load_dataset_config": {"type": "random_rows"}, "dataloader_config": {"batch_size": 4}}


def run_workflow(directory: Path, **parts: Any) -> Any:
    model, _ = write_classifier(directory)
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "cache_dir": str(directory / "cache"),
        "output_dir": str(directory / "out"),
        **parts,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(workflow, package_config=package_config())


def test_in_a_workflow_on_its_data_before_quantization(tmp_path: Path) -> None:
    compress = {"type": "LowRankCompression", **HALF, "data_config": ROWS}
    done = run_workflow(tmp_path, passes={"compress": compress, "quantize": {"type": "OnnxDynamicQuantization"}})
    (model,) = done.get_output_models()
    assert operators(model.model_path).count("MatMulInteger") == 3
    assert model.model_config["model_attributes"]["lowrank_onnx"]["status"] == "written"


def test_its_search_tries_amounts(tmp_path: Path) -> None:
    compress = {"type": "LowRankCompression", **HALF, "amount": [0.6, 0.3], "data_config": ROWS}
    bytes_on_disk = {"name": "file", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}
    done = run_workflow(
        tmp_path,
        passes={"compress": compress},
        evaluators={"size": {"type": "OnnxEvaluator", "metrics": [bytes_on_disk]}},
        evaluator="size",
        search_strategy={"execution_order": "joint", "sampler": "sequential"},
    )
    (best,) = done.get_output_models()  # no other is better in any measure
    tried = sorted(node.pass_run_config["amount"] for node in done.footprint.nodes.values() if node.pass_run_config)
    assert tried == [0.3, 0.6]
    assert done.footprint.nodes[best.model_id].pass_run_config["amount"] == 0.3


def test_the_package_configuration_can_be_written_for_the_command(tmp_path: Path) -> None:
    script = "import json; from lowrank_onnx.integrations.olive import package_config as c; print(json.dumps(c()))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert "LowRankCompression" in json.loads(done.stdout)["passes"]
