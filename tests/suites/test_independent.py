"""The accounts of the independent suites; what is unpacked from the onnx package runs always, the rest as ``zoo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.suites.independent import Account, account_for, differences, generalised
from tests.suites.testdata import Case, DataSet, fetch_node_tests, node_cases, wheel_cases


def test_wheel_suites_without_weights_of_their_own(tmp_path: Path) -> None:
    simple = account_for(wheel_cases("simple"), tmp_path / "simple")
    assert (simple.models, simple.failed) == (23, [])
    light = account_for(wheel_cases("light"), tmp_path / "light")
    assert (light.models, light.failed) == (9, [])
    assert light.skipped["Conv", "weight sits behind ConstantOfShape: fold constants first"] == 401


@pytest.mark.zoo
def test_node_tests_with_their_weights_made_initializers(tmp_path: Path) -> None:
    account = account_for(node_cases(fetch_node_tests()), tmp_path)
    assert account.failed == []
    assert account.models == 932
    assert account.rewritten["Gemm"] == 11
    assert account.compared == {"with the stored outputs": sum(account.rewritten.values())}
    assert all(reason for _, reason in account.skipped)


def gemm() -> Case:
    (found,) = (case for case in wheel_cases("pytorch-converted") if case.name == "test_Linear")
    return found


def test_an_account_fails_where_outputs_differ(tmp_path: Path) -> None:
    account = account_for([gemm()], tmp_path / "right")
    assert account.failed == []
    assert account.compared == {"with the stored outputs": 1}
    (data,) = gemm().data
    assert data.outputs[0] is not None
    problem = differences([data.outputs[0] + 1], list(data.outputs))
    assert problem[0].startswith("output 0 is off by 1")
    assert differences([data.outputs[0][None]], list(data.outputs))[0].startswith("output 0 is float32 (1, ")
    assert differences([], list(data.outputs)) == ["0 outputs, expected 1"]
    assert differences([np.array([1])], [np.array([2])]) == ["output 0 isn't equal"]


def test_an_account_says_where_the_original_misses_the_stored_outputs(tmp_path: Path) -> None:
    case = gemm()
    wrong = DataSet(case.data[0].inputs, tuple(None if y is None else y + 1 for y in case.data[0].outputs))
    account = account_for([replace(case, data=(wrong,))], tmp_path)
    assert account.failed == []
    assert account.compared == {"with the original's outputs (which aren't the stored ones)": 1}


def test_a_case_that_can_not_be_read_is_a_failure(tmp_path: Path) -> None:
    account = Account()
    account.add(Case("empty", onnx.ModelProto(), ()), tmp_path)
    assert len(account.failed) == 1
    assert account.failed[0].startswith("empty: ModelError: ")
    assert account.lines()[0] == "1 models, 0 weights rewritten, 0 nodes skipped, 1 failed"


def test_reasons_are_counted_without_names() -> None:
    reason = "weight 'a.b' is also used by 'then/node' (Add), which is not rewritten"
    assert generalised(reason, "x") == "weight '...' is also used by '...' (Add), which is not rewritten"
