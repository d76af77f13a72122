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
from lowrank_onnx.cli.points import DEFAULT_POINTS, sweep_points
from lowrank_onnx.config import Budget, Config, KeepMacs, KeepParams, Objective, Speedup
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.evaluate.scores import share_confidence
from lowrank_onnx.report.schema import report_schema
from lowrank_onnx.report.sweep_text import sweep_columns, sweep_report
from lowrank_onnx.results import CompressionResult, SweepPoint, SweepResult
from lowrank_onnx.sweep import Pick, figures, on_front, parse_pick, pick_point, sweep
from lowrank_onnx.types import MetricComparison
from tests.report.rendering import rendered
from tests.report.samples import AFTER, BEFORE, FAILED, LATENCY, METRIC, OUTPUT, VERDICT, compression
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
        ("drop=0.01", Pick("drop", 0.01)),
        ("drop=0", Pick("drop", 0.0)),
    ],
)
def test_a_pick_is_read(text: str, pick: Pick) -> None:
    assert parse_pick(text) == pick


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "knee=1",
        "speedup",
        "speedup=fast",
        "speedup=0.5",
        "error=0",
        "error=nan",
        "drop",
        "drop=-1",
        "drop=nan",
    ],
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


def _measured(result: CompressionResult, metric: MetricComparison) -> CompressionResult:
    return replace(result, verdict=replace(VERDICT, outputs=(OUTPUT,), latency=LATENCY, metric=metric))


PLAIN = MetricComparison("loss.py:loss", higher_is_better=False, original=1.0, candidate=1.02)
BY_METRIC = _points(
    _measured(_point(0.01, 1.1, 0.8), METRIC),
    _measured(_point(0.02, 1.1, 0.6), replace(METRIC, candidate=0.946, lost=20, gained=20, drop_bound=0.008)),
    _point(0.10, 1.1, 0.4),
)


def test_a_drop_is_judged_by_its_bound_where_there_is_one() -> None:
    """The smaller model drops less, but what is proved of it is less; the smallest has no metric at all."""
    assert pick_point(BY_METRIC, Pick("drop", 0.005), SIZE) == 0
    assert pick_point(BY_METRIC, Pick("drop", 0.008), SIZE) == 1
    assert pick_point(BY_METRIC, Pick("drop", 0.004), SIZE) is None
    plain = _points(_measured(_point(0.01, 1.1, 0.8), PLAIN))
    assert pick_point(plain, Pick("drop", 0.02), SIZE) == 0
    assert pick_point(plain, Pick("drop", 0.019), SIZE) is None


def test_the_bounds_of_a_sweep_hold_for_all_points_at_once(tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    alone = share_confidence(METRIC, 1)
    measured = _measured(_point(0.01, 1.1, 0.8), alone)
    recorder = _Recorder([measured, measured, _measured(_point(0.1, 1.1, 0.4), PLAIN)])
    result = sweep(model, [KeepMacs(0.8), KeepMacs(0.6), KeepMacs(0.4)], Config(), recorder)
    together, _, plain = (point.result.verdict.metric for point in result.points if point.result.verdict)
    assert together == share_confidence(METRIC, 3)
    assert together is not None
    assert (together.drop, together.confidence) == (METRIC.drop, 0.95)
    assert together.judged_drop > alone.judged_drop > METRIC.drop
    assert plain == PLAIN


def test_the_table_has_a_metric_where_one_was_measured() -> None:
    result = SweepResult("model.onnx", BY_METRIC, None, None, "nothing was written")
    assert sweep_columns(result)[-3:] == ("metric", "drop", "outcome")
    text = rendered(sweep_report(result))
    assert "metric: accuracy.py:correct, 0.9460 originally; drop: how much worse; at most, for data" in " ".join(
        text.split()
    )
    assert "0.9450" in text
    assert "0.00470" in text
    assert "metric" not in rendered(sweep_report(replace(result, points=LADDER)))


def test_verbose_has_the_report_of_each_point() -> None:
    result = SweepResult("model.onnx", LADDER, None, None, "nothing was written")
    brief, full = rendered(sweep_report(result)), rendered(sweep_report(result, verbose=True))
    assert full.endswith(brief)
    assert "factorized: " not in brief
    assert full.count("factorized: ") == len(LADDER)


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
    assert result.message == (
        "nothing was written: no point that holds reaches --pick speedup=3. The fastest has 1.1: ask for that, or add "
        "points that compress more"
    )
    assert sorted(os.listdir(tmp_path)) == ["feeds.npz", "model.onnx"]


@pytest.mark.parametrize(
    ("pick", "best"),
    [(Pick("error", 1e-4), "0.01"), (Pick("agreement", 1.0), "0.999")],
    ids=lambda value: value.rule if isinstance(value, Pick) else "",
)
def test_what_comes_nearest_to_the_pick_is_named(pick: Pick, best: str, tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    recorder = _Recorder([LADDER[0].result])
    result = sweep(model, [KeepMacs(0.8)], Config(), recorder, pick=pick, output=tmp_path / "small.onnx")
    assert result.message.endswith(f"The closest has {best}: ask for that, or add points that compress less")


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_where_no_point_holds_the_way_on_depends_on_the_objective(objective: Objective, tmp_path: Path) -> None:
    model, _ = write_classifier(tmp_path)
    config = Config(objective=objective)
    recorder = _Recorder([replace(LADDER[0].result, status="rejected", message="not faster", config=config)])
    result = sweep(model, [KeepMacs(0.8)], config, recorder, pick=Pick("knee"), output=tmp_path / "small.onnx")
    expected = "nothing was written: no point holds, each with its reason; try points that compress less"
    more = ", or --objective size if bytes are enough" if objective == "latency" else ""
    assert result.message == expected + more


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
    with pytest.raises(UsageError, match=r"--pick drop=0\.01 is about a metric: give --metric FILE\.py:FUNCTION"):
        sweep(model, [KeepMacs(0.5)], Config(), recorder, pick=Pick("drop", 0.01), output=tmp_path / "s.onnx")
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


METRIC_FILE = """
import numpy as np

SAMPLES = np.random.default_rng(8).standard_normal((400, 128)).astype(np.float32)
FIRST = None


def same_first(predict):
    first = predict({"x": SAMPLES})["y"].argmax(axis=1)
    global FIRST
    FIRST = first if FIRST is None else FIRST
    return first == FIRST
"""


def test_a_point_is_picked_by_a_metric_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, feeds = write_classifier(tmp_path)
    Path("metric.py").write_text(METRIC_FILE)
    flags = ["sweep", model.name, "--keep-params", "0.8,0.2", "--objective", "size", "--calib", feeds.name, "--quiet"]
    flags += ["--pick", "drop=0.05", "-o", "s.onnx"]
    assert main(flags) == 2
    assert "--pick drop=0.05 is about a metric" in capsys.readouterr().err
    assert main([*flags, "--metric", "metric.py:same_first", "--json", "s.json"]) == 0
    document = json.loads(Path("s.json").read_text())
    metrics = [point["result"]["verdict"]["metric"] for point in document["points"]]
    assert metrics[0]["drop_bound"] <= 0.05 < metrics[1]["drop_bound"]
    assert document["picked"] == 0
    assert Path("s.onnx").exists()
