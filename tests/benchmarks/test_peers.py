"""Other work's recipes: that each does what its paper says, and keeps to the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("sklearn", reason="needs scikit-learn (extra bench)")

from benchmarks.peer_factors import cholesky_root, pivot_columns, whiten_and_truncate, write_pivoted
from benchmarks.peer_ranks import greedy_ranks, kept_share, uniform_ranks
from benchmarks.peers import INT8, RECIPES, PeerBench
from lowrank_onnx import linalg
from lowrank_onnx.evaluate import Runner, open_session
from lowrank_onnx.forms import PAIR
from lowrank_onnx.sensitivity.damage import Sensitivity
from tests.passes.models import sites_of
from tests.tiny_model import decaying, write_classifier

SAMPLES = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32) * np.geomspace(1, 0.1, 128)
FEEDS = tuple({"x": part.astype(np.float32)} for part in np.split(SAMPLES, 8))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> PeerBench:
    directory = tmp_path_factory.mktemp("peers")
    path, _ = write_classifier(directory)
    return PeerBench(path, FEEDS, directory, seed=0)


def run(session: Runner) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.concatenate([session.run(feed)["y"] for feed in FEEDS]).astype(np.float64)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_keeps_to_its_budget(recipe: object, bench: PeerBench, tmp_path: Path) -> None:
    chosen = next(one for one in RECIPES if one is recipe)
    target = tmp_path / "out.onnx"
    kept = chosen.write(bench, "parameters", 0.6, target)
    expected, actual = run(bench.original), run(open_session(target))
    assert 0.0 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.2
    assert kept == 1.0 if chosen.name == INT8 else 0.4 < kept <= 0.6


def test_whitened_factors_are_the_best_there_are() -> None:
    W = decaying(40, 60, 0.9)
    moment = SAMPLES[:, :40].T @ SAMPLES[:, :40] / 64
    left, right = whiten_and_truncate(W, moment, 8)
    best = linalg.factor(W, 8, second_moment=moment, method="svd")
    E, F = W - left @ right, W - best.left @ best.right
    assert np.sum(E * (moment @ E)) == pytest.approx(np.sum(F * (moment @ F)), rel=1e-3)


def test_a_singular_moment_has_a_root_too() -> None:
    X = np.random.default_rng(1).standard_normal((5, 12))
    root = cholesky_root(X.T @ X)
    assert np.allclose(root @ root.T, X.T @ X, atol=1e-4 * np.trace(X.T @ X))
    assert np.isfinite(cholesky_root(np.zeros((3, 3)))).all()


def test_pivots_and_their_combinations_are_the_product() -> None:
    generator = np.random.default_rng(2)
    left, right = generator.standard_normal((20, 6)), generator.standard_normal((6, 15))
    pivots, rest, order = pivot_columns(left, right)
    assert (pivots.shape, rest.shape) == ((20, 6), (6, 9))
    assert np.abs(rest).max() < 10.0
    whole = np.concatenate([pivots, pivots @ rest], axis=1)[:, order]
    assert np.allclose(whole, left @ right, atol=1e-4)


def test_a_constant_node_leaves_with_the_product_that_read_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    left, right = (generator.standard_normal(shape).astype(np.float32) for shape in ((20, 6), (6, 15)))
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(left @ right))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, size]) for name, size in (("x", 20), ("y", 15)))
    graph = helper.make_graph([constant, helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    (site,) = sites_of(onnx.load(tmp_path / "m.onnx"))
    write_pivoted(tmp_path / "m.onnx", tmp_path / "p.onnx", [(site, left, right)])
    left_over = [node.op_type for node in onnx.load(tmp_path / "p.onnx").graph.node]
    assert left_over == ["MatMul", "MatMul", "Concat", "Gather"]
    feed = {"x": generator.standard_normal((4, 20)).astype(np.float32)}
    expected = open_session(tmp_path / "m.onnx").run(feed)["y"]
    assert np.allclose(open_session(tmp_path / "p.onnx").run(feed)["y"], expected, atol=1e-4)


def test_the_pivoted_form_takes_higher_ranks_at_the_same_size(bench: PeerBench, tmp_path: Path) -> None:
    errors = {}
    expected = run(bench.original)
    for name in ("SVD-LLM", "PIFA"):
        recipe = next(one for one in RECIPES if one.name == name)
        recipe.write(bench, "parameters", 0.6, tmp_path / "m.onnx")
        errors[name] = np.linalg.norm(run(open_session(tmp_path / "m.onnx")) - expected)
    assert errors["PIFA"] < 0.9 * errors["SVD-LLM"]


def test_uniform_ranks_leave_small_weights_alone(bench: PeerBench) -> None:
    ranks, kept = uniform_ranks(bench, "macs", 0.5, lambda group: PAIR)
    assert [weight.name for weight in ranks] == ["w0"]
    ((_, rank),) = ranks.values()
    assert kept == (rank * (128 + 256) + 256 * 10) / (128 * 256 + 256 * 10)
    assert kept_share(bench, "macs", dict.fromkeys(ranks, (PAIR, rank + 1))) > 0.5


def test_greedy_ranks_take_the_least_error_that_meets_the_budget(bench: PeerBench) -> None:
    first, second = (group.weight for group in bench.groups)
    options = {first: [(PAIR, 10), (PAIR, 40), (PAIR, 80)], second: [(PAIR, 2), (PAIR, 9)]}
    measured = [
        Sensitivity(
            weight=first,
            ranks=(10, 40, 80),
            tail_energies=(0.3, 0.2, 0.1),
            output_errors=(0.5, 0.1, 0.01),
            importance=1.0,
            fits=True,
        ),
        Sensitivity(
            weight=second, ranks=(2, 9), tail_energies=(0.3, 0.2), output_errors=(0.6, 0.05), importance=1.0, fits=True
        ),
    ]
    ranks, kept = greedy_ranks(bench, "parameters", 0.6, options, measured)
    assert {weight.name: rank for weight, (_, rank) in ranks.items()} == {"w0": 40, "w1": 9}
    assert kept == (40 * 384 + 9 * 266) / (128 * 256 + 2560)
