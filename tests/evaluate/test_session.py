from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank_onnx.errors import MissingDependencyError, ModelError, UsageError
from lowrank_onnx.evaluate import session as session_module
from lowrank_onnx.evaluate.execution_providers import check_options, placed_nodes
from lowrank_onnx.evaluate.session import CPU, open_session
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.provider import Provider
from tests.evaluate.fakes import make_model, value


def _double() -> onnx.ModelProto:
    return make_model([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", ["n", None, 3])], [value("y", None)])


def test_runs_a_model_and_tells_its_signature() -> None:
    session = open_session(_double().SerializeToString(), threads=1)
    assert session.inputs == (InputSpec("x", "float32", ("n", None, 3)),)
    assert session.outputs == ("y",)
    assert session.provider == CPU
    assert session.providers_used == (CPU,)
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def test_opens_a_file_without_optimizations(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_double(), path)
    session = open_session(path, optimize=False)
    assert session.run({"x": np.ones((1, 1, 3), np.float32)})["y"].tolist() == [[[2, 2, 2]]]


def test_returns_the_outputs_asked_for() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["negative"]), helper.make_node("Abs", ["x"], ["positive"])]
    model = make_model(nodes, [value("x", ["n"])], [value("negative", None), value("positive", None)])
    session = open_session(model.SerializeToString())
    assert session.outputs == ("negative", "positive")
    assert list(session.run({"x": np.ones(2, np.float32)}, ["positive"])) == ["positive"]


def test_bytes_find_their_external_data_in_the_base_directory(tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32)
    model = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [4096])],
        [value("y", None)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    data = (tmp_path / "model.onnx").read_bytes()
    assert len(data) < 1000
    feed = {"x": np.zeros(4096, np.float32)}
    np.testing.assert_array_equal(open_session(data, base_dir=tmp_path).run(feed)["y"], weight)
    with pytest.raises(ModelError, match="onnxruntime can't load the model"):
        open_session(data, base_dir=tmp_path / "elsewhere")


def test_scalars_strings_sequences_and_optionals_are_described() -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    model = make_model(
        [
            helper.make_node("Identity", ["scalar"], ["a"]),
            helper.make_node("Identity", ["text"], ["b"]),
            helper.make_node("SequenceLength", ["list"], ["c"]),
            helper.make_node("OptionalHasElement", ["maybe"], ["d"]),
        ],
        [
            value("scalar", [], TensorProto.INT64),
            value("text", ["n"], TensorProto.STRING),
            helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
            helper.make_value_info("maybe", optional),
        ],
        [
            value("a", None, TensorProto.INT64),
            value("b", None, TensorProto.STRING),
            value("c", None, TensorProto.INT64),
            value("d", None, TensorProto.BOOL),
        ],
    )
    session = open_session(model.SerializeToString())
    assert [(spec.dtype, spec.shape) for spec in session.inputs] == [
        ("int64", ()),
        ("str", ("n",)),
        ("seq(tensor(float))", ()),
        ("optional(tensor(float))", (2,)),
    ]
    assert [spec.is_tensor for spec in session.inputs] == [True, True, False, False]
    assert [spec.is_optional for spec in session.inputs] == [False, False, False, True]
    feed: dict[str, Any] = {"scalar": np.int64(3), "text": np.array(["é"]), "list": []}
    result = session.run(feed)
    assert result["a"] == 3
    assert result["b"].tolist() == ["é"]
    assert result["c"] == 0
    assert not result["d"]


def test_initializers_that_are_inputs_can_be_overridden_from_ir_version_4_on() -> None:
    model = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [2]), value("w", [2])],
        [value("y", None)],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    session = open_session(model.SerializeToString())
    assert session.inputs == (InputSpec("x", "float32", (2,)),)
    assert session.overridable == (InputSpec("w", "float32", (2,)),)
    x = np.zeros(2, np.float32)
    assert session.run({"x": x})["y"].tolist() == [1, 1]
    assert session.run({"x": x, "w": x + 3})["y"].tolist() == [3, 3]
    model.ir_version = 3
    assert open_session(model.SerializeToString()).overridable == ()


@pytest.mark.parametrize(
    ("onnx_type", "numpy_type"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    ],
)
def test_extension_types_go_in_and_out_with_their_values(onnx_type: int, numpy_type: Any) -> None:
    x = np.array([[0.5, -2.0, 1.75]], numpy_type)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["y"], to=onnx_type),
    ]
    model = make_model(nodes, [value("x", [1, 3], onnx_type)], [value("y", None, onnx_type), value("wide", None)])
    session = open_session(model.SerializeToString())
    assert session.inputs[0].dtype == np.dtype(numpy_type).name
    result = session.run({"x": x})
    assert result["y"].dtype == x.dtype
    np.testing.assert_array_equal(result["y"].astype(np.float32), x.astype(np.float32))
    assert result["wide"].tolist() == [[0.5, -2.0, 1.75]]


def test_foreign_byte_order_is_not_misread() -> None:
    x = np.array([[[1.0, 2.0, 3.0]]], ">f4")
    assert open_session(_double().SerializeToString()).run({"x": x})["y"].tolist() == [[[2, 4, 6]]]


def test_a_model_that_cannot_be_loaded_is_one_clean_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="can't load the model: Failed to load model because protobuf parsing") as info:
        open_session(b"\x00garbage\x01")
    assert "\n" not in str(info.value)
    assert "ONNXRuntimeError" not in str(info.value)
    unknown = make_model([helper.make_node("Nonsense", ["x"], ["y"])], [value("x", [1])], [value("y", None)])
    with pytest.raises(ModelError, match="No Op registered for Nonsense"):
        open_session(unknown.SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_a_feed_that_cannot_be_run_is_a_model_error(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    session = open_session(make_model(nodes, [value("x", ["a", "b"])], [value("y", None)]).SerializeToString())
    with pytest.raises(ModelError, match=r"can't run the model: .*MatMul dimension mismatch") as info:
        session.run({"x": np.ones((2, 3), np.float32)})
    assert ".h:" not in str(info.value)
    with pytest.raises(ModelError, match="Required inputs"):
        session.run({})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_providers_have_short_names(name: str) -> None:
    assert open_session(_double().SerializeToString(), provider=name).providers_used == (CPU,)


@pytest.mark.parametrize("name", ["nonsense", "", "executionprovider"])
def test_an_unknown_provider_names_those_available(name: str) -> None:
    with pytest.raises(UsageError, match=f"provider '{name}': this onnxruntime has .*CPUExecutionProvider"):
        open_session(_double().SerializeToString(), provider=name)


def test_nodes_left_to_the_cpu_are_refused() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs a provider that is available and takes no nodes")
    with pytest.raises(UsageError, match=r"AzureExecutionProvider: it can't run .* CPU, 1 of 1 \(1 x Add\):"):
        open_session(_double().SerializeToString(), provider="azure")


FOR_CUDA = (
    r"for CUDAExecutionProvider, in place of onnxruntime, pip install '"
    r"onnxruntime-gpu\[cuda,cudnn\]<1\.27' 'cupy-cuda12x\[ctk\]' .*\.\[cuda12\]"
)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("cuda", FOR_CUDA),
        ("TensorrtExecutionProvider", r"\.\[cuda12\].*, and TensorRT"),
        ("openvino", "pip install onnxruntime-openvino"),
    ],
)
def test_a_provider_that_is_missing_says_what_to_install(name: str, fix: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if any(name.casefold() in there.casefold() for there in onnxruntime.get_available_providers()):
        pytest.skip("this onnxruntime has it")
    with pytest.raises(UsageError, match=f"provider '{name}': this onnxruntime has only .*{fix}"):
        open_session(_double().SerializeToString(), provider=name)


def test_what_ran_where_is_counted() -> None:
    session = open_session(_double().SerializeToString())
    if session.nodes is None:
        pytest.skip("this onnxruntime doesn't say")
    assert session.nodes == {CPU: 1}


def test_an_onnxruntime_that_does_not_say_what_ran_where() -> None:
    assert placed_nodes(SimpleNamespace()) is None
    node = object()
    parts = [SimpleNamespace(ep_name=name, get_nodes=lambda: [node, node]) for name in ("a", "b", "a")]
    assert placed_nodes(SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)) == {"a": 4, "b": 2}


def test_an_option_that_the_provider_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="--provider-option nonsense: CPUExecutionProvider has no such option: it has"):
        open_session(_double().SerializeToString(), provider=Provider("cpu", (("nonsense", "1"),)))


def test_options_are_checked_against_those_that_the_provider_reports() -> None:
    cuda = SimpleNamespace(get_provider_options=lambda: {"CUDAExecutionProvider": {"device_id": "1", "a": "0"}})
    check_options("CUDAExecutionProvider", (("device_id", "1"),), cuda)
    with pytest.raises(UsageError, match=r"--provider-option devce: CUDAExecutionProvider .*: it has a, device_id"):
        check_options("CUDAExecutionProvider", (("devce", "1"),), cuda)
    check_options("OtherExecutionProvider", (("x", "1"),), SimpleNamespace(get_provider_options=dict))


def test_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def start(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["providers"])
        raise RuntimeError("far enough")

    fake = _with_cuda(start)
    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: fake)
    with pytest.raises(UsageError, match="far enough"):
        open_session(b"", provider=Provider("cuda", (("device_id", "1"),)))
    assert seen[0] == [("CUDAExecutionProvider", {"device_id": "1"})]


def _with_cuda(start: Callable[..., Any]) -> SimpleNamespace:
    """Stands for an onnxruntime that has CUDA, and opens sessions as given."""
    return SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", CPU],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda key, entry: None),
        InferenceSession=start,
        set_default_logger_severity=lambda severity: None,
    )


@pytest.mark.parametrize(
    ("version", "overridden", "left_out"), [("1.28.0", True, True), ("1.28.0", False, False), ("1.30.1", True, False)]
)
def test_an_optimization_that_crashes_is_left_out_where_it_does(
    version: str, overridden: bool, left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def start(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("disabled_optimizers"))
        raise RuntimeError("far enough")

    fake = _with_cuda(start)
    fake.__version__ = version
    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: fake)
    with pytest.raises(ModelError, match="far enough"):
        open_session(b"", overridden=overridden)
    assert seen == [["FuseFp16InitializerToFp32NodeTransformer"] if left_out else None]


@pytest.mark.parametrize("provider", ["cuda", "cpu"])
def test_libraries_of_cuda_are_loaded_first_and_in_silence(
    provider: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def preload() -> None:
        calls.append("preload")
        print("Failed to load libcublas.so")

    def start(*args: Any, **kwargs: Any) -> Any:
        calls.append("start")
        raise RuntimeError("far enough")

    fake = _with_cuda(start)
    fake.preload_dlls = preload
    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: fake)
    with pytest.raises((UsageError, ModelError), match="far enough"):
        open_session(b"", provider=provider)
    assert calls[:2] == (["preload", "start"] if provider == "cuda" else ["start"])
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("refused", [False, True], ids=["falls back", "refused, as the CPU isn't allowed"])
def test_a_provider_that_does_not_start_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], refused: bool
) -> None:
    def start(source: bytes, options: Any, **others: Any) -> Any:
        if refused and len(others["providers"]) == 1:
            raise RuntimeError("This session contains nodes, but fallback to CPU EP has been explicitly disabled")
        os.write(
            2, b"2026-01-01 10:00:00.1 [E:onnxruntime:Default, x.cc:9 Create] /o/a.cc:1 int o::Get(int) No driver\n"
        )
        return SimpleNamespace(get_providers=lambda: [CPU])

    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: _with_cuda(start))
    with pytest.raises(UsageError, match=r"CUDAExecutionProvider: onnxruntime couldn't start it: No driver: check its"):
        open_session(b"", provider="cuda")
    assert capfd.readouterr().err.count("No driver") == (0 if refused else 1)  # the latter by this double itself
    with pytest.raises(UsageError, match=r"start it with --provider-option device_id=9: No driver: check that option"):
        open_session(b"", provider=Provider("cuda", (("device_id", "9"),)))


def test_a_provider_that_refuses_its_options_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*args: Any, **others: Any) -> Any:
        raise RuntimeError("Invalid option: bogus")

    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: _with_cuda(start))
    with pytest.raises(UsageError, match=r"with --provider-option bogus=1: Invalid option: bogus: check that option"):
        open_session(b"", provider=Provider("cuda", (("bogus", "1"),)))


@pytest.mark.openvino
def test_openvino_runs_whole_models_and_names_what_is_wrong_with_its_options() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-openvino")
    session = open_session(_double().SerializeToString(), provider="openvino")
    assert session.nodes == {"OpenVINOExecutionProvider": 1}
    for option, given, reason in (
        ("device_type", "NPU", "Device NPU is not available"),
        ("num_of_threads", "many", "Number of threads should be a number"),
        ("bogus", "1", "Invalid OpenVINO EP option: bogus"),
    ):
        with pytest.raises(UsageError, match=f"--provider-option {option}={given}: {reason}: check that option"):
            open_session(_double().SerializeToString(), provider=Provider("openvino", ((option, given),)))


def _install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def distribution(name: str) -> object:
        if name in names:
            return SimpleNamespace(version="1.0")
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    session_module._import_onnxruntime.cache_clear()


def test_no_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install onnxruntime \(or, .*pip install -e '\.\[cpu\]'"):
        open_session(b"")


def test_two_onnxruntimes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(MissingDependencyError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        open_session(b"")
