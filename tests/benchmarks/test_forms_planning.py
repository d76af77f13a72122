from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import forms_planning
from benchmarks.forms_planning import ALL, PAIRS, measure_points
from benchmarks.forms_planning_report import markdown, verdict
from benchmarks.planning import Judge
from benchmarks.planning_cases import Case
from tests.tiny_model import classifier, decaying

SPEED = {"speedup": 1.5, "low": 1.4, "high": 1.6}


def way(error: float) -> dict[str, Any]:
    forms = {"pair": 2, "dense": 1}
    return {"kept": 0.6, "error": error, "metrics": {"top-1": 0.9}, "speed": SPEED, "forms": forms, "seconds": 3.0}


def point(pairs: float | None, every: float) -> dict[str, Any]:
    ways = {PAIRS: None if pairs is None else way(pairs), ALL: way(every)}
    return {"limited": "macs", "asked": 0.6, "ways": ways, "against": None if pairs is None else SPEED}


def test_the_verdict_names_what_is_worse_and_what_only_all_forms_reach() -> None:
    assert verdict([point(0.2, 0.1)]) == (
        "Nowhere worse with all forms. Error relative to pairs alone: 0.50 (0.6 of the macs)."
    )
    assert verdict([point(0.1, 0.11)]).startswith("Worse with all forms at 0.6 of the macs.")
    within = point(0.1, 0.11) | {"limited": "error", "asked": 0.05}
    assert verdict([within]) == (
        "Nowhere worse with all forms. Faster than pairs alone by 1.50x (1.40 to 1.60) (error at most 0.05)."
    )
    slower = within | {"against": {"speedup": 0.8, "low": 0.7, "high": 0.9}}
    assert verdict([slower]).startswith("Worse with all forms at error at most 0.05.")
    assert verdict([point(None, 0.1)]).endswith("Only with all forms within reach: 0.6 of the macs.")


def test_the_tables() -> None:
    around = {"date": "2026-01-01", "machine": "m"}
    model = {
        "model": "vgg",
        "data": "judged somehow",
        "metrics": {"top-1": 0.95},
        "circumstances": around,
        "points": [point(0.2, 0.1), point(None, 0.1)],
    }
    lines = markdown({"models": [model]}).splitlines()
    assert "Judged somehow. Uncompressed: top-1 0.9500." in lines
    speed = "1.50x (1.40 to 1.60)"
    assert f"| 0.6 of the macs | pairs alone | 0.2000 | 0.9000 | {speed} |  | dense 1, pair 2 | 3 |" in lines
    assert f"| 0.6 of the macs | all forms | 0.1000 | 0.9000 | {speed} | {speed} | dense 1, pair 2 | 3 |" in lines
    assert "| 0.6 of the macs | pairs alone | out of reach |  |  |  |  |  |" in lines


def tiny_case(directory: Path) -> Case:
    path = directory / "tiny.onnx"
    onnx.save(classifier(), path)
    generator = np.random.default_rng(0)
    feeds = tuple({"x": generator.standard_normal((4, 128)).astype(np.float32)} for _ in range(8))
    return Case(
        "tiny", path, feeds, feeds[:1], feeds[:1], feeds[:2], lambda outputs: {}, ("parameters",), "random rows"
    )


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    given = SimpleNamespace(
        quick=True, again=False, models=("vgg",), limited=("parameters",), shares=(0.6,), out=tmp_path, seconds=0.05
    )
    monkeypatch.setattr(forms_planning, "_parse", lambda: given)
    monkeypatch.setattr(forms_planning, "load_case", lambda name, quick: tiny_case(tmp_path))
    return given


def test_a_stopped_run_goes_on(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms_planning.main()
    (model,) = json.loads((tmp_path / "forms_planning.json").read_text())["models"]
    (first,) = model["points"]
    assert all(first["ways"][name]["kept"] <= 0.6 for name in (PAIRS, ALL))
    assert set(first["ways"][PAIRS]["forms"]) <= {"pair", "dense"}
    arguments.shares = (0.6, 0.5)
    measured: list[object] = []

    def spied(case: Case, judge: Judge, wanted: list[Any], seconds: float) -> Any:
        measured.extend(wanted)
        return measure_points(case, judge, wanted, seconds)

    monkeypatch.setattr(forms_planning, "measure_points", spied)
    forms_planning.main()
    assert measured == [("parameters", 0.5)]
    (model,) = json.loads((tmp_path / "forms_planning.json").read_text())["models"]
    assert model["points"][0] == first
    assert [one["asked"] for one in model["points"]] == [0.6, 0.5]
    assert "0.5 of the parameters" in capsys.readouterr().out


def test_both_ways_plan_for_the_same_weights_where_a_table_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "lookup.onnx"
    onnx.save(table_and_product(), path)
    generator = np.random.default_rng(0)
    feeds = tuple({"ids": generator.integers(0, 400, (4, 6))} for _ in range(4))
    case = Case("lookup", path, feeds, feeds[:1], feeds[:1], feeds[:2], lambda outputs: {}, ("parameters",), "ids")
    (found,) = measure_points(case, Judge(case), [("parameters", 0.6)], 0.01)
    ways = [way for way in found.ways.values() if way is not None]
    assert len(ways) == 2
    assert [sum(way.forms.values()) for way in ways] == [1, 1]


def table_and_product() -> onnx.ModelProto:
    """Rows of a table (400, 64) times a matrix (64, 128)."""
    weights = {"table": decaying(400, 64, 0.9), "w": decaying(64, 128, 0.9)}
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
        onnx.helper.make_node("MatMul", ["rows", "w"], ["y"], name="product"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "lookup",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", 6])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6, 128])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
