from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import load_feeds
from lowrank_onnx.evaluate.session import open_session
from lowrank_onnx.evaluate.values import InputSpec

X = InputSpec("x", "float32", ("n", 2))
IDS = InputSpec("ids", "int64", ("n",))
BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"


def write(folder: Path, *protos: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, proto in enumerate(protos):
        (folder / f"input_{index}.pb").write_bytes(proto.SerializeToString())
    return folder


def tensor(*values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype))


def test_data_sets_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write(tmp_path / f"test_data_set_{number}", tensor([number, 0.5]), tensor(number, dtype=np.int64))
    (tmp_path / "test_data_set_7").mkdir()
    feeds = load_feeds(tmp_path, [X, IDS])
    assert [(feed["x"].tolist(), feed["ids"].tolist()) for feed in feeds] == [
        ([[0.0, 0.5]], [0]),
        ([[2.0, 0.5]], [2]),
        ([[10.0, 0.5]], [10]),
    ]
    assert (len(feeds), feeds.samples, feeds.synthetic) == (3, 3, False)
    assert len(load_feeds(tmp_path / "test_data_set_2", [X, IDS])) == 1


def test_sequences_and_optionals(tmp_path: Path) -> None:
    items = [np.ones(2, np.float32), np.zeros(3, np.float32)]
    write(tmp_path, numpy_helper.from_list(items), numpy_helper.from_optional(items[1]))
    inputs = [InputSpec("list", "seq(tensor(float))", ()), InputSpec("maybe", "optional(tensor(float))", ())]
    (feed,) = load_feeds(tmp_path, inputs)
    assert [item.tolist() for item in feed["list"]] == [[1, 1], [0, 0, 0]]
    assert feed["maybe"].tolist() == [0, 0, 0]
    (tmp_path / "input_1.pb").unlink()
    (feed,) = load_feeds(tmp_path, inputs)
    assert list(feed) == ["list"]


def test_the_models_of_the_onnx_package_run_on_their_data() -> None:
    for name in ("pytorch-converted/test_Conv2d", "pytorch-operator/test_operator_conv"):
        session = open_session(BACKEND / name / "model.onnx")
        (feed,) = load_feeds(BACKEND / name, session.inputs)
        expected = onnx.TensorProto.FromString((BACKEND / name / "test_data_set_0" / "output_0.pb").read_bytes())
        actual = session.run(feed)[session.outputs[0]]
        np.testing.assert_allclose(actual, numpy_helper.to_array(expected), rtol=1e-4, atol=1e-5)


def test_faults_are_one_clear_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "test_data_set_0", tensor([1, 2]))
    with pytest.raises(UsageError, match=r"no input_1.pb for the model's input 'ids': add it"):
        load_feeds(tmp_path, [X, IDS])
    write(folder, tensor([1, 2]), tensor(1, dtype=np.int64))
    with pytest.raises(UsageError, match=r"input_1.pb: the model has only 1 inputs: remove it"):
        load_feeds(tmp_path, [X])
    with pytest.raises(UsageError, match=r"'ids' holds float32, the model's input is int64"):
        load_feeds(tmp_path, [InputSpec("ids", "int64", ("n", 2)), X])
    with pytest.raises(UsageError, match=r"input_0.pb: the model's input 'm' is map.*: give feeds from Python"):
        load_feeds(tmp_path, [InputSpec("m", "map(string,tensor(float))", ()), IDS])
    (folder / "input_0.pb").write_bytes(b"\xff\xff random")
    with pytest.raises(UsageError, match=r"input_0.pb: can't be read as float32 for input 'x'"):
        load_feeds(tmp_path, [X, IDS])
    (folder / "input_0.pb").write_bytes(onnx.TensorProto(dims=[10**9, 2], data_type=1).SerializeToString())
    with pytest.raises(UsageError, match=r"input_0.pb: can't be read as float32 for input 'x'"):
        load_feeds(tmp_path, [X, IDS])


def test_data_in_other_files_is_not_read(tmp_path: Path) -> None:
    outside = onnx.TensorProto(dims=[1, 2], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/hostname")
    sequence = onnx.SequenceProto(elem_type=onnx.SequenceProto.TENSOR, tensor_values=[outside])
    for proto, dtype in ((outside, "float32"), (sequence, "seq(tensor(float))")):
        write(tmp_path, proto)
        with pytest.raises(UsageError, match=r"input_0.pb: its data is in another file, which feeds may not read"):
            load_feeds(tmp_path, [InputSpec("x", dtype, ())])


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write(tmp_path, tensor([1, np.inf]))
    with pytest.raises(UsageError, match="'x' holds 1 NaN or infinite values"):
        list(load_feeds(tmp_path, [X]))
