from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.compare import compare_outputs
from lowrank_onnx.evaluate.logits import check_values, find_logits
from tests.evaluate.fakes import FunctionSession, as_feeds, make_model, value


def model(*outputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    return make_model([], [], outputs)


OUTPUTS = model(
    value("head/tokens", ["n", "t", 100]),
    value("head/classes", ["n", None], TensorProto.FLOAT16),
    value("label", ["n"], TensorProto.INT64),
    value("unknown", None),
    value("block[0]", ["n", 2], TensorProto.BFLOAT16),
)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), ()),
        (("head/classes",), ("head/classes",)),
        (("unknown", "head/*"), ("head/tokens", "head/classes", "unknown")),
        (("block[0]",), ("block[0]",)),
        (("*c*", "head/classes"), ("head/classes", "block[0]")),
    ],
)
def test_patterns_are_names_or_globs_and_outputs_keep_their_order(
    patterns: Sequence[str], found: tuple[str, ...]
) -> None:
    assert find_logits(OUTPUTS, patterns) == found


def test_a_name_without_an_output_is_an_error_with_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"--logits scores: no output has that name: expected some of head/tokens, h"):
        find_logits(OUTPUTS, ["head/classes", "scores"])
    with pytest.raises(UsageError, match="--logits HEAD/CLASSES: no output"):
        find_logits(OUTPUTS, ["HEAD/CLASSES"])


SEQUENCE = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (value("y", ["n", 10], TensorProto.INT64), "its elements are int64"),
        (value("y", ["n", 10], TensorProto.BOOL), "its elements are bool"),
        (value("y", ["n"], TensorProto.STRING), "its elements are strings"),
        (value("y", ["n", 10], 999), "its elements are of an unknown type"),
        (value("y", []), "it is a scalar"),
        (value("y", ["n", 1]), "its last axis has 1 of them"),
        (SEQUENCE, "it is a sequence"),
    ],
)
def test_what_can_t_be_logits_is_an_error_that_says_why(output: onnx.ValueInfoProto, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_logits(model(output), ["*"])
    assert str(caught.value) == (
        f"--logits: output 'y': {fault}: expected floats with at least 2 classes on the last axis"
    )


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (np.zeros((2, 3), np.int64), "its elements are int64"),
        (np.array(["a", "b"]), "its elements are strings"),
        (np.float32(1.0), "it is a scalar"),
        (np.zeros((5, 1), np.float32), "its last axis has 1 of them"),
        ([np.zeros((2, 3), np.float32)], "it is a sequence"),
        ({0: 1.0}, "it is a map"),
        (None, "it is a value without elements"),
    ],
)
def test_what_only_a_run_shows_is_an_error_then(returned: Any, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_values("y", returned)
    assert f"output 'y': {fault}:" in str(caught.value)
    session = FunctionSession(lambda feed: {"y": returned}, logits=["y"])
    with pytest.raises(UsageError, match="--logits: output 'y'"):
        compare_outputs(session, FunctionSession(lambda feed: {"y": returned}), as_feeds([np.zeros(1, np.float32)]))
