from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lowrank_onnx
from lowrank_onnx.cli import main
from lowrank_onnx.cli.budgets import DEFAULT_POINTS, sweep_points
from lowrank_onnx.config import Budget, Config, KeepMacs, KeepParams, Speedup
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.report.schema import report_schema
from lowrank_onnx.results import CompressionResult, SweepPoint
from lowrank_onnx.sweep import Pick, figures, on_front, parse_pick, pick_point, sweep
from tests.report.samples import AFTER, BEFORE, FAILED, LATENCY, OUTPUT, VERDICT, compression
from tests.report.schema_check import problems
from tests.tiny_model import write_classifier

SIZE = Config(objective="size")


def _point(error: float, speedup: float, share: float, *, agreement: float = 0.99) -> CompressionResult:
    """A result that holds, with the figures that a sweep looks at."""
    verdict = replace(
        VERDICT,
        outputs=(replace(OUTPUT, relative_l2=error, top1_agreement=agreement),),
        latency=replace(LATENCY, speedup=speedup),
    )
    return compression(verdict=verdict, after=replace(AFTER, file_bytes=round(BEFORE.file_bytes * share)))


def _points(*results: CompressionResult) -> tuple[SweepPoint, ...]:
    return tuple(SweepPoint(result, on_front(result, results)) for result in results)


LADDER = _points(
    _point(0.01, 1.1, 0.8, agreement=0.999),
    _point(0.02, 1.6, 0.6, agreement=0.99),
    _point(0.10, 1.8, 0.4, agreement=0.95),
)


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        ("knee", Pick("knee")),
        ("speedup=1.3", Pick("speedup", 1.3)),
        ("error=0.05", Pick("error", 0.05)),
        ("agreement=0.99", Pick("agreement", 0.99)),
    ],
)
def test_a_pick_is_read(text: str, pick: Pick) -> None:
    assert parse_pick(text) == pick


@pytest.mark.parametrize(
    "text", ["", "best", "knee=1", "speedup", "speedup=fast", "speedup=0.5", "error=0", "error=nan"]
)
def test_another_pick_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected knee, speedup=S .*e\.g\. --pick speedup=1\.3"):
        parse_pick(text)


@pytest.mark.parametrize(
    ("pick", "index"),
    [
        (Pick("knee"), 1),
        (Pick("speedup", 1.5), 1),
        (Pick("speedup", 1.7), 2),
        (Pick("speedup", 2.0), None),
        (Pick("error", 0.05), 1),
        (Pick("error", 0.005), None),
        (Pick("agreement", 0.95), 2),
        (Pick("agreement", 1.0), None),
    ],
)
def test_the_picked_point(pick: Pick, index: int | None) -> None:
    assert pick_point(LADDER, pick, Config()) == index


def test_most_compressed_is_what_the_objective_says() -> None:
    points = _points(_point(0.01, 2.0, 0.8), _point(0.02, 1.1, 0.4))
    assert pick_point(points, Pick("error", 0.05), Config()) == 0
    assert pick_point(points, Pick("error", 0.05), SIZE) == 1


def test_what_did_not_hold_is_never_picked() -> None:
    rejected = compression(status="rejected", verdict=FAILED)
    assert figures(rejected) is None
    assert not on_front(rejected, [rejected])
    for rule in ("knee", "speedup=1", "error=1", "agreement=0.1"):
        assert pick_point(_points(rejected), parse_pick(rule), Config()) is None


def test_the_front_leaves_out_what_is_beaten_in_everything() -> None:
    good, beaten, small = _point(0.01, 2.0, 0.5), _point(0.02, 1.9, 0.5), _point(0.03, 1.0, 0.3)
    assert [point.on_front for point in _points(good, beaten, small)] == [True, False, True]
    assert [point.on_front for point in _points(good, good)] == [True, True]


class _Recorder:
    """Stands in for the pipeline: writes a small model, and remembers how it was called."""

    def __init__(self, results: Sequence[CompressionResult]) -> None:
        self.results = list(results)
        self.budgets: list[Budget] = []
        self.caches: set[Path] = set()

    def __call__(self, model: Any, config: Config, /, *, output: Path, cache: Path, **_: Any) -> CompressionResult:
        result = self.results[len(self.budgets)]
        self.budgets.append(config.budget)
        self.caches.add(cache)
        if result.status == "written":
            proto = onnx.load(model)
            proto.doc_string = f"point {len(self.budgets)}"
            onnx.save(proto, output)
        return replace(result, config=config)


def test_each_budget_is_tried_with_one_cache_and_one_is_written(tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    recorder = _Recorder([point.result for point in LADDER])
    budgets = [KeepMacs(0.8), KeepMacs(0.6), KeepMacs(0.4)]
    output = tmp_path / "small.onnx"
    result = sweep(model, budgets, Config(), recorder, pick=Pick("speedup", 1.5), output=output)
    assert recorder.budgets == budgets
    assert len(recorder.caches) == 1
    assert not recorder.caches.pop().exists()
    assert onnx.load(output).doc_string == "point 2"
    assert (result.picked, result.output, result.message) == (1, str(output), f"point 2 written to {output}")
    assert all(point.result.output is None for point in result.points)
    assert sorted(os.listdir(tmp_path)) == ["feeds.npz", "model.onnx", "small.onnx"]


def test_nothing_is_written_where_no_point_reaches_the_pick(tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    recorder = _Recorder([LADDER[0].result])
    output = tmp_path / "small.onnx"
    result = sweep(model, [KeepMacs(0.8)], Config(), recorder, pick=Pick("speedup", 3.0), output=output)
    assert result.picked is None
    assert result.message == "nothing was written: no point that holds reaches --pick speedup=3"
    assert sorted(os.listdir(tmp_path)) == ["feeds.npz", "model.onnx"]


def test_wrong_uses_are_refused_before_any_work(tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    recorder = _Recorder([])
    with pytest.raises(UsageError, match="a sweep needs budgets"):
        sweep(model, [], Config(), recorder)
    with pytest.raises(UsageError, match="--pick and --output go together"):
        sweep(model, [KeepMacs(0.5)], Config(), recorder, pick=Pick("knee"))
    with pytest.raises(UsageError, match="drop --no-validate"):
        sweep(model, [KeepMacs(0.5)], Config(budget=KeepMacs(0.5), validate=False), recorder)
    with pytest.raises(OutputError, match="exists"):
        sweep(model, [KeepMacs(0.5)], Config(), recorder, pick=Pick("knee"), output=tmp_path / "feeds.npz")
    assert recorder.budgets == []


def test_points_are_read_from_one_list() -> None:
    assert sweep_points(None, None, None) == tuple(map(KeepMacs, DEFAULT_POINTS))
    assert sweep_points("0.8, 0.5", None, None) == (KeepParams(0.8), KeepParams(0.5))
    assert sweep_points(None, None, "1.2") == (Speedup(1.2),)
    for given, message in [
        (("0.5", "0.5", None), "--keep-params and --keep-macs: expected one list"),
        ((None, "half", None), "--keep-macs half: expected numbers"),
        ((None, ",", None), "expected at least one number"),
        ((None, "1.5", None), "--keep-macs 1.5: expected a share"),
    ]:
        with pytest.raises(UsageError, match=message):
            sweep_points(*given)


def test_the_points_of_a_sweep_are_those_of_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, feeds = write_classifier(tmp_path)
    flags = ["--keep-params", "0.7,0.4", "--objective", "size", "--calib", feeds.name]
    assert main(["sweep", model.name, *flags, "--pick", "error=0.9", "-o", "s.onnx", "--json", "s.json"]) == 0
    out = capsys.readouterr().out
    assert "--keep-params 0.4" in out
    document = json.loads((tmp_path / "s.json").read_text())
    assert problems(document, report_schema(), report_schema()) == []
    assert document["picked"] == 1
    config = Config(budget=KeepParams(0.4), objective="size")
    lowrank_onnx.compress(model, config, feeds=feeds, output=tmp_path / "alone.onnx")
    alone, swept = (
        onnx.load(tmp_path / name).SerializeToString(deterministic=True) for name in ("alone.onnx", "s.onnx")
    )
    assert alone == swept
    assert len(np.unique([point["result"]["after"]["file_bytes"] for point in document["points"]])) == 2


def test_a_sweep_without_a_pick_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = write_classifier(tmp_path)
    assert main(["sweep", model.name, "--keep-macs", "0.5", "--objective", "size"]) == 0
    assert "nothing was written: choose a point with --pick and -o" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["feeds.npz", "model.onnx"]
    assert main(["sweep", model.name, "--pick", "knee"]) == 2
    assert "--pick and --output go together" in capsys.readouterr().err
