"""What the paper's tables are made of: ranks, replaced weights, networks and reports."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("sklearn", reason="needs scikit-learn (extra bench)")

from benchmarks import paper, paper_accuracy, paper_graphs
from benchmarks.kernel_solvers import solve_exact
from benchmarks.paper_accuracy import Meaning, eligible_weights, rank_for, total_variation, with_output, with_weights
from benchmarks.paper_kernel import Matrix, measure_kernel
from benchmarks.saved_results import SavedResults
from benchmarks.spectra import matrix, slow
from lowrank_onnx import passes
from lowrank_onnx.evaluate import open_session
from tests.tiny_model import classifier


@pytest.mark.parametrize(
    ("rows", "columns", "meaning", "alpha", "rank"),
    [
        (768, 3072, "rank", 0.4, 308),
        (10, 512, "rank", 0.2, 2),
        (768, 3072, "parameters", 0.4, 245),
        (10, 512, "parameters", 0.8, 7),
        (10, 512, "parameters", 0.05, 1),
    ],
)
def test_ranks_for_both_meanings_of_alpha(rows: int, columns: int, meaning: Meaning, alpha: float, rank: int) -> None:
    assert rank_for(rows, columns, meaning, alpha) == rank


def test_total_variation_is_half_the_absolute_difference() -> None:
    first, second = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    assert total_variation(first, second).tolist() == [0.0, 1.0]


def test_weights_are_replaced_and_nothing_else() -> None:
    model = classifier()
    weights = eligible_weights(model)
    assert [tensor.name for tensor in weights] == ["w0", "w1"]
    changed = with_weights(model, {"w1": np.full((256, 10), 2.0, np.float32)})
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, changed))
    assert np.array_equal(before["w0"], after["w0"])
    assert (after["w1"] == 2.0).all()
    assert not (before["w1"] == 2.0).any()
    outputs = open_session(with_output(model, "r").SerializeToString()).run({"x": np.ones((2, 128), np.float32)})
    assert outputs["r"].shape == (2, 256)


@pytest.mark.parametrize("name", paper_accuracy.MODELS)
def test_full_rank_changes_nothing_and_low_rank_is_certified(name: str, tmp_path: Path) -> None:
    bench = paper_accuracy.AccuracyBench(name, tmp_path, "quick")
    whole = bench.judge_uniform("exact SVD", solve_exact, "rank", 1.0)
    assert (whole.top1, whole.top5) == bench.accuracy(bench.expected)
    assert whole.change < 1e-4
    assert whole.classifier_bound is not None
    assert whole.classifier_bound < 1e-4
    assert whole.stable == pytest.approx(1.0, abs=0.02)
    low = bench.judge_uniform("exact SVD", solve_exact, "parameters", 0.3)
    assert low.kept <= 0.31
    assert low.top1 < whole.top1
    assert low.classifier_change is not None
    assert low.classifier_bound is not None
    assert low.paper_bound is not None
    assert 0.0 < low.classifier_change <= low.classifier_bound <= low.paper_bound


def test_the_kernel_is_measured_beside_the_published_algorithm() -> None:
    made = Matrix("made", lambda: matrix((40, 60), slow(40), seed=0), (5, 10))
    results = list(measure_kernel(made, "quick"))
    assert [result.rank for result in results] == [5, 10]
    for result in results:
        errors = {timed.solver: timed.error for timed in result.timed}
        assert list(errors) == ["RSI q=1", "RSI q=2", "RSI q=3", "RSI q=4", "this library"]
        assert errors["this library"] <= 1.03
        assert errors["RSI q=1"] > errors["RSI q=4"] >= 0.99
        assert all(timed.seconds > 0.0 for timed in result.timed)


def test_the_networks_have_the_layers_of_the_papers() -> None:
    vgg, vit = paper_graphs.build_vgg19(divisor=16), paper_graphs.build_vit_b32(layers=1)
    for model, expected in ((vgg, {"Conv": 16, "Gemm": 3}), (vit, {"Conv": 1, "MatMul": 6, "Gemm": 1})):
        sites, _ = passes.find_sites(model, op_types=("MatMul", "Gemm", "Conv"))
        assert Counter(site.op_type for site in sites) == expected
        logits = open_session(model.SerializeToString()).run({"image": np.ones((2, 3, 224, 224), np.float32)})["logits"]
        assert logits.shape == (2, 1000)
        assert np.isfinite(logits).all()
        assert logits.std() > 1e-3


def test_drawn_weights_keep_the_size_of_activations() -> None:
    W = paper_graphs.draw((64, 32, 3, 3), 0)
    assert W.shape == (64, 32, 3, 3)
    assert np.sum(np.square(W, dtype=np.float64)) == pytest.approx(2 * 64, rel=1e-4)
    values = np.linalg.svd(W.reshape(64, -1), compute_uv=False)
    assert values[9] / values[0] == pytest.approx(10**-0.4, rel=1e-3)


def test_the_report_shows_what_was_saved(tmp_path: Path) -> None:
    made = Matrix("made", lambda: matrix((20, 30), slow(20), seed=0), (3,))
    (kernel,) = measure_kernel(made, "quick")
    saved = SavedResults(tmp_path / "paper.json")
    saved.put("kernel/made/3", kernel, 1.0)
    row = paper_accuracy.Judged("RSI q=1", "rank", 0.4, 0.51, 0.7712, 0.99, 0.2, 0.01, 0.05, 0.06, 0.9)
    shared = (kernel.date, kernel.machine, kernel.versions)
    accuracy = paper_accuracy.AccuracyResult("m", "quick", 9, 0.9, 1.0, (row,), *shared)
    saved.put("accuracy/m/0.4", accuracy, 1.0)
    figures = (12.0, 1.5, 574_000_000, 230_000_000, 90.0, 45.0, 2.0, 1.9, 2.1)
    saved.put("graphs/v/0.4", paper_graphs.GraphResult("v", "default", 0.4, *figures, *shared), 1.0)
    paper.write_report(tmp_path)
    report = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert "| made (20 x 30) | 3 |" in report
    assert "| 0.4 | RSI q=1 | 0.510 | 77.12% | 99.00% | 0.2000 | 0.0100 | 0.0500 | 0.0600 | 90.0% |" in report
    assert "| v | 0.4 | 12 | 1.50 GB | 574.0 -> 230.0 MB | 90 -> 45 ms | 2.00 (1.90-2.10) |" in report
    assert "Part of it is from a quick run on few samples." in report


def test_saved_results_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []

    def load() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        loads.append(1)
        return matrix((20, 30), slow(20), seed=0)

    monkeypatch.setattr(paper, "matrices", lambda size: (Matrix("made", load, (2, 3)),))
    place = tmp_path / "paper.json"
    paper.run_kernel(SavedResults(place), size="quick", again=False)
    paper.run_kernel(SavedResults(place), size="quick", again=False)
    assert len(loads) == 1
    found = json.loads(place.read_text(encoding="utf-8"))
    del found["kernel/made/3"]
    place.write_text(json.dumps(found), encoding="utf-8")
    paper.run_kernel(SavedResults(place), size="quick", again=False)
    assert len(loads) == 2
    paper.run_kernel(SavedResults(place), size="quick", again=True)
    assert len(loads) == 3


def test_unknown_parts_are_refused() -> None:
    assert paper._parts("kernel,graphs") == ("kernel", "graphs")
    with pytest.raises(argparse.ArgumentTypeError, match="tables: expected some of kernel, accuracy, graphs"):
        paper._parts("tables")
