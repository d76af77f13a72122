"""The zoo's own machinery on a small model: what is saved, what is run again, and what the report says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("PIL", reason="needs Pillow (extra bench)")
pytest.importorskip("sklearn", reason="needs scikit-learn (extra bench)")

from benchmarks import zoo
from benchmarks.gloss_probe import parse_gloss
from benchmarks.saved_results import SIZES, SavedResults, Size, measured_on
from benchmarks.zoo_agenda import AGENDAS, EIGHT_BITS, FULL, PEERS, QUICK, Agenda
from benchmarks.zoo_cases import CASES, ZooCase
from benchmarks.zoo_report import at_equal_error, verdicts
from lowrank_onnx import CompressionResult, Config, compress
from lowrank_onnx.evaluate import Session, open_session
from models.packages import FetchError
from tests.tiny_model import write_classifier

LOGITS = ("y",)


class Loader:
    """Loads one case, and counts how often the model was judged."""

    def __init__(self, directory: Path) -> None:
        self.path, _ = write_classifier(directory)
        self.loaded = self.judged = 0

    def __call__(self, size: Size) -> ZooCase:
        self.loaded += 1
        samples = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
        feeds = tuple({"x": part} for part in np.split(samples, 8))

        def judge(session: Session) -> Mapping[str, float]:
            self.judged += 1
            return {"top share": float(session.run({"x": samples})["y"].max(axis=-1).mean())}

        return ZooCase("tiny", self.path, feeds, judge, False, "calibrated with noise", LOGITS)


def compress_for_size(model: Path, config: Config, **options: Any) -> CompressionResult:
    """As the benchmark does, but without the timing of weights: what is tested is no latency."""
    assert config.logits == LOGITS
    return compress(model, replace(config, objective="size", sensitivity="off"), **options)


AGENDA = Agenda((0.6,), {0.6: ("SVD-LLM", *EIGHT_BITS)})


def test_a_run_that_was_stopped_goes_on_behind_its_last_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "compress", compress_for_size)
    monkeypatch.setattr(zoo, "TIMED_SECONDS", 0.01)
    load = Loader(tmp_path)

    def run(size: Size) -> None:
        zoo.run_model(load, "tiny", AGENDA, SavedResults(tmp_path / "zoo.json"), size=size, again=False)

    run("quick")
    assert (load.loaded, load.judged) == (1, 5)
    run("quick")
    assert load.loaded == 1
    found = json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))
    assert set(found) == {
        "tiny",
        "tiny/this program/0.6",
        "tiny/SVD-LLM/0.6",
        "tiny/int8/0.6",
        "tiny/this program, then int8/0.6",
    }
    del found["tiny/SVD-LLM/0.6"]
    (tmp_path / "zoo.json").write_text(json.dumps(found), encoding="utf-8")
    run("quick")
    assert (load.loaded, load.judged) == (2, 6)
    run("default")
    assert load.judged == 11
    found = json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))
    original, point, peer = (found[key] for key in ("tiny", "tiny/this program/0.6", "tiny/SVD-LLM/0.6"))
    assert point["objective"] == "size"
    assert 0.0 < point["macs_kept"] <= 0.6
    assert 0.0 < peer["macs_kept"] <= 0.6
    assert 0.0 < point["error"] < 1.0
    assert point["parameters"] < original["parameters"]
    assert point["file_bytes"] < original["file_bytes"]
    assert found["tiny/int8/0.6"]["file_bytes"] < original["file_bytes"] / 2
    zoo.write_report(tmp_path)
    report = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert "## tiny" in report
    assert f"| 0.6 | this program (for size) | {point['metrics']['top share']:.4f} |" in report
    assert f"| all | original | {original['metrics']['top share']:.4f} |" in report
    assert f"the best peer (SVD-LLM) is {peer['error'] / point['error']:.2f} times" in report


def test_a_model_that_cannot_be_fetched_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(size: Size) -> ZooCase:
        raise FetchError("p=1: a Debian package, and there is no apt-get here")

    monkeypatch.setattr(zoo, "CASES", {"craft": unavailable})
    monkeypatch.setattr("sys.argv", ["zoo", "--models", "craft", "--out", str(tmp_path)])
    assert zoo.main() == 1
    assert "craft is left out: p=1: a Debian package" in capsys.readouterr().err
    assert (tmp_path / "zoo.md").is_file()


@dataclass(frozen=True)
class Sized:
    size: Size


def test_a_smaller_result_is_not_enough_for_a_larger_run(tmp_path: Path) -> None:
    saved = SavedResults(tmp_path / "new" / "r.json")
    assert not saved.has("a", "quick")
    saved.put("a", Sized("default"), 2.04)
    again = SavedResults(tmp_path / "new" / "r.json")
    assert [again.has("a", size) for size in SIZES] == [True, True, False]
    assert again["a"] == {"size": "default", "seconds_taken": 2.0, "load": again["a"]["load"]}
    assert again.part("b") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]


def test_every_model_has_an_agenda_of_known_ways() -> None:
    assert set(AGENDAS) == set(CASES)
    for agenda in (*AGENDAS.values(), QUICK, FULL):
        assert set(agenda.others) <= set(agenda.shares)
        for ways in agenda.others.values():
            assert set(ways) <= {*PEERS, *EIGHT_BITS}


def test_parameters_of_constant_nodes_count(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["w"], value=weight)],
        "g",
        [],
        [],
        [
            onnx.numpy_helper.from_array(np.ones(5, np.float32), "b"),
            onnx.numpy_helper.from_array(np.ones(2, np.int64), "i"),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert zoo.count_parameters(path) == 12 + 5


def test_unknown_models_are_refused() -> None:
    assert zoo._names("craft,minilm-l6") == ("craft", "minilm-l6")
    with pytest.raises(argparse.ArgumentTypeError, match="nonsense: expected some of minilm-l6"):
        zoo._names("craft,nonsense")


def test_definitions_are_read_without_examples() -> None:
    line = '00001740 03 n 01 entity 0 000 | that which is perceived; known or inferred; "an example; of it"  '
    assert parse_gloss(line) == (3, "that which is perceived; known or inferred")


@pytest.mark.zoo
@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_judged(name: str) -> None:
    """The original's figures on few samples, against marks that only a broken export or task would miss."""
    case = CASES[name]("quick")
    marks = {"WER": 0.15, "CER": 0.12, "word-box F1": 0.9, "stamps": 0.3, "WordSim": 0.7, "topic probe": 0.5}
    found = case.judge(open_session(case.path))
    judged = set(found) & set(marks)
    assert judged
    for figure in judged:
        assert found[figure] <= marks[figure] if case.lower_is_better else found[figure] >= marks[figure]


def test_speed_is_compared_where_the_error_is_no_larger() -> None:
    def point(way: str, share: float, error: float, speedup: float) -> dict[str, Any]:
        interval = {"speedup_low": speedup - 0.04, "speedup_high": speedup + 0.04}
        return {"way": way, "share": share, "error": error, "speedup": speedup, "metrics": {"F1": 0.9}} | interval

    points = [
        point("this program", 0.6, 0.02, 1.5),
        point("this program", 0.4, 0.05, 2.0),
        point("BALF", 0.6, 0.06, 1.6),
        point("PIFA", 0.6, 0.03, 1.6),
        point("SVD-LLM", 0.6, 0.03, 1.55),
        point("int8", 0.6, 0.01, 1.2),
        {**point("RSI", 0.6, 0.06, 9.0), "metrics": None},
    ]
    (said,) = at_equal_error(points)
    assert said.endswith(
        "this program is at least as fast as 1 of 4 other models; "
        "within the intervals of SVD-LLM at 0.6 (0.97 times, this program at 0.6); "
        "slower than PIFA at 0.6 (0.94 times, this program at 0.6); not measured at the error of int8."
    )
    assert at_equal_error(points[:2]) == []


@pytest.mark.parametrize(
    ("lower", "said"),
    [
        (False, "Better than this program's: BALF's F1 (0.9200, this program 0.9000)."),
        (True, "Better than this program's: PIFA's F1 (0.8000, this program 0.9000)."),
    ],
)
def test_figures_that_are_better_are_named(lower: bool, said: str) -> None:
    common = {"share": 0.6, "error": 0.1, "speedup": 1.0}
    ways = {"this program": 0.9, "BALF": 0.92, "PIFA": 0.8, "int8": 1.0 - lower}
    points = [{"way": way, "metrics": {"F1": figure}, **common} for way, figure in ways.items()]
    original = {"lower_is_better": lower, "metrics": {"F1": 0.95}}
    (verdict,) = verdicts(points, original)
    assert verdict.endswith(said)
    (verdict,) = verdicts([p for p in points if p["way"] != said.split("'s F1")[0].split(": ")[1]], original)
    assert verdict.endswith("No peer has a better figure.")


def test_a_shared_machine_is_told() -> None:
    row = {"date": "2026-01-02", "machine": "a machine", "versions": {"numpy": "2"}, "size": "default"}
    assert "shared" not in measured_on([row, {**row, "load": 1.5}])
    assert measured_on([{**row, "load": 1.5}, {**row, "load": 12.5}]).endswith("(load average up to 12.5).")
