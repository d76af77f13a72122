from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.compare import compare_outputs
from lowrank_onnx.evaluate.feeds import load_feeds
from lowrank_onnx.evaluate.session import Session, open_session
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.model_io import base_dir, load_model, model_bytes
from lowrank_onnx.passes import find_sites
from lowrank_onnx.sensitivity.measure import Sensitivity, Unmeasured, count_runs, measure_sensitivity
from lowrank_onnx.types import Array, Feed, Rearrangement, numpy_dtype, rearrange
from lowrank_onnx.weights import SharedWeight, group_by_weight, stored_tensors
from tests.passes.models import constant, factor, make_model, value, weight
from tests.tiny_model import write_classifier

EYE = np.eye(6, dtype=np.float32)


def opened(model: onnx.ModelProto) -> Session:
    return open_session(model.SerializeToString(), threads=1, overridden=True)


def groups_of(model: onnx.ModelProto) -> tuple[SharedWeight, ...]:
    return group_by_weight(find_sites(model, op_types=OP_TYPES)[0])


def back(arrangement: Rearrangement, matrices: Array, shape: tuple[int, ...]) -> Array:
    """From (groups, in, out) to the stored layout."""
    permuted = tuple(arrangement.split[axis] for axis in arrangement.order)
    inverse = tuple(int(axis) for axis in np.argsort(arrangement.order))
    return rearrange(matrices, Rearrangement(permuted, inverse, shape))


class Truncated:
    """Each weight of a model at any rank by NumPy's SVD, with the relative squared tail."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.groups = groups_of(model)
        tensors = stored_tensors(model, [group.weight for group in self.groups])
        self._stored = {ref: numpy_helper.to_array(tensor) for ref, tensor in tensors.items()}
        self.asked: list[tuple[str, int]] = []

    def matrices(self, group: SharedWeight) -> Array:
        return rearrange(self._stored[group.weight], group.sites[0].to_matrices)

    def approximate(self, group: SharedWeight, rank: int) -> Array:
        self.asked.append((group.weight.name, rank))
        left, right = factor(self.matrices(group), rank)
        stored = back(group.sites[0].to_matrices, left @ right, group.weight.shape)
        return stored.astype(numpy_dtype(group.weight.dtype))

    def tail(self, group: SharedWeight, rank: int) -> float:
        squares = np.linalg.svd(self.matrices(group).astype(np.float64), compute_uv=False) ** 2
        return float(squares[:, rank:].sum() / squares.sum())


def measure(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    ranks: Sequence[int],
    *,
    run: Callable[[onnx.ModelProto], Any] = opened,
    **options: Any,
) -> tuple[Sensitivity | Unmeasured, ...]:
    """Every weight of the model at these ranks, truncated by NumPy's SVD."""
    weights = Truncated(model)
    given = {"max_feeds": len(feeds), "tails": weights.tail, "approximate": weights.approximate, **options}
    approximate, tails = given.pop("approximate"), given.pop("tails")
    return measure_sensitivity(model, weights.groups, run, feeds, approximate, tails, lambda group: ranks, **given)


def measured(results: Sequence[Sensitivity | Unmeasured]) -> list[Sensitivity]:
    assert all(isinstance(result, Sensitivity) for result in results)
    return [result for result in results if isinstance(result, Sensitivity)]


def reasons(results: Sequence[Sensitivity | Unmeasured]) -> list[str]:
    assert all(isinstance(result, Unmeasured) for result in results)
    return [result.reason for result in results if isinstance(result, Unmeasured)]


def linear(*weights: Array, nodes: Sequence[onnx.NodeProto] = (), **options: Any) -> onnx.ModelProto:
    """x -> @ w0 -> @ w1 ..., or the nodes given in their place."""
    code = helper.np_dtype_to_tensor_dtype(weights[0].dtype)
    last = len(weights) - 1
    chain = [
        helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], ["y" if i == last else f"h{i + 1}"])
        for i in range(len(weights))
    ]
    stored = {f"w{i}": array for i, array in enumerate(weights)}
    return make_model(
        list(nodes) or chain, [value("x", [None, 6], code)], [value("y", [None, None], code)], stored, **options
    )


def spectrum(*values: float, seed: int = 0) -> Array:
    """A square weight with these singular values and random singular vectors."""
    size = len(values)
    left, _ = np.linalg.qr(weight(size, size, seed=seed).astype(np.float64))
    right, _ = np.linalg.qr(weight(size, size, seed=seed + 1).astype(np.float64))
    return np.asarray((left * np.array(values)) @ right.T, np.float32)


def orthogonal(seed: int) -> Array:
    return spectrum(*[1.0] * 6, seed=seed)


DECAY = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)


def test_a_weight_seen_through_isometries_has_importance_one() -> None:
    """With orthonormal inputs and orthogonal weights after it, the output error is the tail energy itself."""
    model = linear(spectrum(*DECAY), orthogonal(4))
    first, _ = measured(measure(model, [{"x": EYE}], [1, 2, 4]))
    squares = np.square(DECAY)
    expected = [squares[rank:].sum() / squares.sum() for rank in (1, 2, 4)]
    assert first.weight.name == "w0"
    assert first.ranks == (1, 2, 4)
    np.testing.assert_allclose(first.output_errors, expected, rtol=1e-4)
    np.testing.assert_allclose(first.tail_energies, expected, rtol=1e-4)
    assert first.importance == pytest.approx(1.0, rel=1e-4)
    assert first.fits
    assert first.problem == ""


def test_a_weight_with_little_influence_is_unimportant() -> None:
    """y = x @ w0 + x @ w1 / 100: the share of w1 in the output's energy is its importance."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["x", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    large, small = spectrum(*DECAY), spectrum(*DECAY, seed=6) / 100
    model = linear(large, small, nodes=nodes)
    _, second = measured(measure(model, [{"x": EYE}], [1, 3]))
    share = np.sum(np.square(small)) / np.sum(np.square(large.astype(np.float64) + small))
    assert second.importance == pytest.approx(share, rel=1e-3)
    assert second.fits


def test_the_largest_error_of_the_outputs_counts() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["y"]),
        helper.make_node("Mul", ["y", "ten"], ["scaled"]),
        helper.make_node("Add", ["y", "far"], ["shifted"]),
        helper.make_node("ArgMax", ["y"], ["label"], axis=1),
    ]
    model = linear(spectrum(*DECAY), nodes=nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([number], np.float32), name) for name, number in (("ten", 10), ("far", 100))
    )
    model.graph.output.extend(value(name, [None, 6]) for name in ("scaled", "shifted"))
    model.graph.output.append(value("label", [None, 1], TensorProto.INT64))
    (only,) = measured(measure(model, [{"x": EYE}], [2]))
    assert only.output_errors[0] == pytest.approx(only.tail_energies[0], rel=1e-4)


def labels_only() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("ArgMax", ["h"], ["y"], axis=1)]
    model = linear(np.diag(np.array([1, 1, 1, 1, 1, 0.5], np.float32)), nodes=nodes)
    model.graph.output[0].CopyFrom(value("y", [None, 1], TensorProto.INT64))
    return model


def test_integers_count_where_there_is_nothing_else() -> None:
    """At rank 5 the last row of x @ w is zero, so one label of six falls from 5 to 0."""
    (only,) = measured(measure(labels_only(), [{"x": EYE}], [5]))
    assert only.output_errors == pytest.approx(((1 / 6) ** 2,))


class Deaf:
    """A session that ignores what a feed gives beyond the inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = opened(model)
        self.inputs, self.outputs, self.overridable, self.logits = (
            self._session.inputs,
            self._session.outputs,
            self._session.overridable,
            self._session.logits,
        )

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        return self._session.run({"x": feed["x"]}, outputs)


def test_without_the_override_no_error_would_be_seen() -> None:
    model = linear(spectrum(*DECAY), orthogonal(4))
    for heard, unheard in zip(
        measured(measure(model, [{"x": EYE}], [1])), measured(measure(model, [{"x": EYE}], [1], run=Deaf)), strict=True
    ):
        assert heard.output_errors[0] > 0.1
        assert unheard.output_errors == (0.0,)


@given(st.integers(2, 7), st.integers(2, 9), st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_errors_are_those_of_a_model_that_stores_the_approximation(
    features: int, hidden: int, classes: int, feeds: int, seed: int
) -> None:
    model = make_model(
        [
            helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("MatMul", ["t", "b"], ["y"]),
        ],
        [value("x", [None, features])],
        [value("y", [None, classes])],
        {"a": weight(hidden, features, seed=seed), "b": weight(hidden, classes, seed=seed + 1)},
    )
    given = [{"x": weight(3, features, seed=seed + 2 + index)} for index in range(feeds)]
    weights = Truncated(model)
    original = opened(model)
    for group, found in zip(weights.groups, measured(measure(model, given, [1])), strict=True):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        tensor = stored_tensors(copy, [group.weight])[group.weight]
        tensor.CopyFrom(numpy_helper.from_array(weights.approximate(group, 1), group.weight.name))
        (expected,) = compare_outputs(original, opened(copy), load_feeds(given, original.inputs))
        assert found.output_errors[0] == pytest.approx(expected.error**2, rel=1e-3, abs=1e-9)
        assert found.tail_energies[0] == weights.tail(group, 1)


def test_a_shared_weight_is_replaced_at_all_its_sites() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w0"], ["y"])]
    shared = spectrum(*DECAY)
    model = linear(shared, nodes=nodes)
    (only,) = measured(measure(model, [{"x": EYE}], [2]))
    weights = Truncated(model)
    exact, approximation = shared.astype(np.float64), weights.approximate(weights.groups[0], 2).astype(np.float64)
    difference = approximation @ approximation - exact @ exact
    expected = np.sum(np.square(difference)) / np.sum(np.square(exact @ exact))
    assert only.output_errors[0] == pytest.approx(expected, rel=1e-4)


def test_constant_nodes_and_ir_version_3() -> None:
    plain = linear(spectrum(*DECAY), orthogonal(4))
    nodes = [constant(f"w{i}", numpy_helper.to_array(plain.graph.initializer[i])) for i in range(2)]
    constants = make_model([*nodes, *plain.graph.node], plain.graph.input, plain.graph.output)
    old = linear(spectrum(*DECAY), orthogonal(4), ir_version=3, opset=8)
    old.graph.input.extend(value(f"w{i}", [6, 6]) for i in range(2))
    expected = measured(measure(plain, [{"x": EYE}], [1, 3]))
    for model in (constants, old):
        for found, wanted in zip(measured(measure(model, [{"x": EYE}], [1, 3])), expected, strict=True):
            assert found.output_errors == pytest.approx(wanted.output_errors, rel=1e-5)


def test_float16_weights_and_outputs() -> None:
    model = linear(spectrum(*DECAY).astype(np.float16))
    (only,) = measured(measure(model, [{"x": EYE.astype(np.float16)}], [1, 3]))
    assert only.weight.dtype == "float16"
    assert only.output_errors == pytest.approx(only.tail_energies, rel=0.02)


def test_a_convolution_with_groups_in_its_stored_layout() -> None:
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        [value("x", [None, 8, 5, 5])],
        [value("y", [None, 8, 3, 3])],
        {"w": weight(8, 4, 3, 3)},
    )
    (only,) = measured(measure(model, [{"x": weight(4, 8, 5, 5, seed=1)}], [1, 2, 4]))
    assert list(only.output_errors[:2]) == sorted(only.output_errors[:2], reverse=True)
    assert only.output_errors[1] > 1e-3
    assert only.tail_energies[2] == pytest.approx(0.0, abs=1e-12)
    assert only.output_errors[2] < 1e-9


def branched() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"])],
        "then",
        [],
        [value("a", [None, 6])],
        [numpy_helper.from_array(spectrum(*DECAY), "w")],
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "else", [], [value("b", [None, 6])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    inputs = [value("x", [None, 6]), value("c", [], TensorProto.BOOL)]
    return make_model([node], inputs, [value("y", [None, 6])])


def test_a_weight_of_a_subgraph_is_measured() -> None:
    (only,) = measured(measure(branched(), [{"x": EYE, "c": np.array(True)}], [2]))
    assert only.weight.scope == ((0, "then_branch"),)
    assert only.output_errors[0] == pytest.approx(only.tail_energies[0], rel=1e-4)


def test_a_branch_that_no_feed_takes_has_no_effect() -> None:
    (only,) = measured(measure(branched(), [{"x": EYE, "c": np.array(False)}], [2]))
    assert (only.output_errors, only.importance, only.fits) == ((0.0,), 0.0, True)


def test_a_weight_that_cannot_be_overridden_has_a_reason_and_its_runs_are_not_missed() -> None:
    model = branched()
    groups = groups_of(model)
    model.graph.node[0].attribute[1].g.output.append(value("w", [6, 6]))
    model.graph.node[0].attribute[0].g.output.append(value("x2", [None, 6]))
    model.graph.node[0].attribute[0].g.node.append(helper.make_node("Identity", ["x"], ["x2"]))
    model.graph.node[0].output.append("z")
    stage = Counting()
    feed = {"x": EYE, "c": np.array(True)}
    result = measure_sensitivity(
        model, groups, opened, [feed], never, lambda group, rank: 0.5, lambda group: [1, 2], max_feeds=1, progress=stage
    )
    assert reasons(result) == ["weight 'w' is also an output of its subgraph"]
    assert stage.done == count_runs(groups, lambda group: [1, 2], 1, 1) == 3


def never(group: SharedWeight, rank: int) -> Array:
    raise AssertionError("no approximation is needed")


def test_a_runtime_that_refuses_overrides_is_told() -> None:
    class Refusing(Deaf):
        def __init__(self, model: onnx.ModelProto) -> None:
            super().__init__(model)
            self.overridable: tuple[InputSpec, ...] = self.overridable[1:]

    first, second = measure(linear(spectrum(*DECAY), orthogonal(4)), [{"x": EYE}], [1], run=Refusing)
    assert first == Unmeasured(first.weight, "onnxruntime doesn't let weight 'w0' be overridden")
    assert isinstance(second, Sensitivity)


def test_ranks_that_tell_nothing_have_a_reason() -> None:
    model = linear(spectrum(*DECAY))
    assert reasons(measure(model, [{"x": EYE}], [])) == ["no rank to try"]
    exact = measure(model, [{"x": EYE}], [1], tails=lambda group, rank: 0.0, approximate=never)
    assert reasons(exact) == ["nothing is lost at any rank tried"]


def test_a_tail_that_does_not_explain_the_error_does_not_fit() -> None:
    """The feed excites only the weakest direction, which every truncation loses: the error is 1 at any rank."""
    model = linear(np.diag(np.array(DECAY, np.float32)))
    (only,) = measured(measure(model, [{"x": EYE[5:]}], [1, 3, 5]))
    assert only.output_errors == pytest.approx((1.0, 1.0, 1.0))
    assert only.tail_energies[0] > 100 * only.tail_energies[2]
    assert not only.fits
    expected = math.exp(np.mean([-math.log(tail) for tail in only.tail_energies]))
    assert only.importance == pytest.approx(expected)


@pytest.mark.parametrize(("feed", "tried"), [(EYE, (1, 2)), (EYE[5:], (1, 2, 3, 5))])
def test_more_ranks_are_tried_only_where_the_model_does_not_fit(feed: Array, tried: tuple[int, ...]) -> None:
    model = linear(np.diag(np.array(DECAY, np.float32)))
    stage = Counting()
    (only,) = measured(measure(model, [{"x": feed}], [1, 2, 3, 5], enough_ranks=2, progress=stage))
    assert only.ranks == tried
    assert len(only.output_errors) == len(only.tail_energies) == len(tried)
    assert stage.done == 5


def test_a_rank_without_a_tail_is_not_enough() -> None:
    model = linear(spectrum(*DECAY))
    (only,) = measured(
        measure(model, [{"x": EYE}], [6, 2, 1], enough_ranks=1, tails=lambda group, rank: 0.0 if rank == 6 else 0.25)
    )
    assert only.ranks == (6, 2)


def reciprocal() -> onnx.ModelProto:
    """y = 1 / (x @ w0): infinite for an approximation of zeros."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("Reciprocal", ["h"], ["y"])]
    return linear(np.full((6, 6), 2, np.float32) + np.eye(6, dtype=np.float32), nodes=nodes)


def test_outputs_that_are_not_finite_are_an_infinite_importance_with_the_reason() -> None:
    def zero_at_rank_1(group: SharedWeight, rank: int) -> Array:
        return np.full((6, 6), 0 if rank == 1 else 2, np.float32)

    (only,) = measured(measure(reciprocal(), [{"x": EYE}, {"x": EYE}], [2, 1], approximate=zero_at_rank_1))
    assert 0.0 < only.output_errors[0] < 1.0
    assert only.output_errors[1] == math.inf
    assert (only.importance, only.fits) == (math.inf, False)
    assert (
        only.problem == "rank 1: output 'y': the candidate has 72 NaN or infinite values where the original is finite"
    )


def test_an_output_that_was_zero_is_told() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    model = linear(-np.ones((6, 6), np.float32), nodes=nodes)
    (only,) = measured(
        measure(
            model,
            [{"x": EYE}],
            [1],
            approximate=lambda group, rank: np.ones((6, 6), np.float32),
            tails=lambda group, rank: 0.5,
        )
    )
    assert only.problem == "rank 1: output 'y': it was all zero, and no longer is"
    assert only.importance == math.inf


def test_a_run_that_fails_with_the_approximation_is_an_infinite_error() -> None:
    class Failing(Deaf):
        def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
            if "w0" in feed:
                raise ModelError("onnxruntime can't run the model: Reshape")
            return super().run(feed, outputs)

    stage = Counting()
    model = linear(spectrum(*DECAY), orthogonal(4))
    first, second = measured(measure(model, [{"x": EYE}] * 3, [1], run=Failing, progress=stage))
    assert (first.output_errors, first.problem) == (
        (math.inf,),
        "rank 1: onnxruntime can't run the model: Reshape",
    )
    assert second.output_errors == (0.0,)
    assert stage.done == 3 * 3


class Counting:
    """A stage that counts."""

    def __init__(self) -> None:
        self.done = 0
        self.details: list[str] = []

    def advance(self, n: int = 1, detail: str = "") -> None:
        self.done += n
        self.details.append(detail)


def test_every_run_is_reported_and_only_max_feeds_are_read() -> None:
    model = linear(spectrum(*DECAY), orthogonal(4))
    read: list[int] = []

    def feeds() -> Iterator[Feed]:
        for index in range(5):
            read.append(index)
            yield {"x": EYE, "label": np.zeros(1)}

    stage, weights = Counting(), Truncated(model)
    measure_sensitivity(
        model,
        weights.groups,
        opened,
        feeds(),
        weights.approximate,
        weights.tail,
        lambda group: [2, 1, 2],
        max_feeds=2,
        progress=stage,
    )
    assert read == [0, 1]
    assert weights.asked == [("w0", 2), ("w0", 1), ("w1", 2), ("w1", 1)]
    expected = [text for text in ("original", "w0, rank 2", "w0, rank 1", "w1, rank 2", "w1, rank 1") for _ in "ab"]
    assert stage.details == expected
    assert stage.done == count_runs(weights.groups, lambda group: [2, 1, 2], 5, 2) == 10


def test_several_feeds_are_one_error() -> None:
    model = linear(spectrum(*DECAY))
    split = [{"x": EYE[:2]}, {"x": 3 * EYE[2:]}]
    (found,) = measured(measure(model, split, [2]))
    (whole,) = measured(measure(model, [{"x": np.concatenate([EYE[:2], 3 * EYE[2:]])}], [2]))
    assert found.output_errors == pytest.approx(whole.output_errors, rel=1e-5)


def test_the_same_bytes_every_time() -> None:
    model = linear(spectrum(*DECAY), orthogonal(4))
    before = model.SerializeToString()
    assert measure(model, [{"x": EYE}], [1, 3]) == measure(model, [{"x": EYE}], [1, 3])
    assert model.SerializeToString() == before


def test_weights_may_stay_in_the_model_file(tmp_path: Path) -> None:
    path, _ = write_classifier(tmp_path)
    loaded, whole = load_model(path), onnx.load(path)
    weights = Truncated(whole)

    def run(proto: onnx.ModelProto) -> Session:
        data = model_bytes(loaded.with_rewrite(proto, {}))
        return open_session(data, base_dir=base_dir(loaded), threads=1, overridden=True)

    feeds = [{"x": weight(4, 128, seed=1)}]
    found = measure_sensitivity(
        loaded.skeleton,
        weights.groups,
        run,
        feeds,
        weights.approximate,
        weights.tail,
        lambda group: [4],
        max_feeds=1,
    )
    for stripped, complete in zip(measured(found), measured(measure(whole, feeds, [4])), strict=True):
        assert stripped.output_errors == complete.output_errors
        assert stripped.output_errors[0] > 0.0


def test_outputs_that_cannot_tell_are_left_out_and_without_others_it_is_told() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["y"]),
        helper.make_node("Sub", ["y", "y"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["nan"]),
    ]
    model = linear(spectrum(*DECAY), nodes=nodes)
    model.graph.output.append(value("nan", [None, 6]))
    (only,) = measured(measure(model, [{"x": EYE}], [2]))
    assert only.output_errors[0] == pytest.approx(only.tail_energies[0], rel=1e-4)
    del model.graph.output[0]
    with pytest.raises(UsageError, match=r"these feeds: output 'nan': the original's output holds 36 NaN"):
        measure(model, [{"x": EYE}], [2])


def test_strings_count_where_there_is_nothing_else() -> None:
    nodes = [*labels_only().graph.node[:1], helper.make_node("Cast", ["h"], ["y"], to=TensorProto.STRING)]
    model = linear(spectrum(*DECAY), nodes=nodes)
    model.graph.output[0].CopyFrom(value("y", [None, 6], TensorProto.STRING))
    (only,) = measured(measure(model, [{"x": EYE}], [5]))
    assert only.output_errors[0] > 0.0


def test_faults_are_told() -> None:
    model = linear(spectrum(*DECAY))
    with pytest.raises(UsageError, match="max_feeds 0: expected at least 1"):
        measure(model, [{"x": EYE}], [1], max_feeds=0)
    with pytest.raises(UsageError, match="there is no feed to measure sensitivity on"):
        measure(model, [], [1], max_feeds=3)
    with pytest.raises(ModelError, match="onnxruntime can't run the model"):
        measure(model, [{"x": EYE[:, :5]}], [1])
    with pytest.raises(ValueError, match="enough_ranks 0: expected at least 1"):
        measure(model, [{"x": EYE}], [1], enough_ranks=0)
    for rank in (0, 7):
        with pytest.raises(ValueError, match=f"weight 'w0': rank {rank}: expected 1 to 6"):
            measure(model, [{"x": EYE}], [rank], tails=lambda group, rank: 0.5)
    for tail in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"weight 'w0': tail energy .* at rank 2: expected 0 or more"):
            measure(model, [{"x": EYE}], [2], tails=lambda group, rank, tail=tail: tail)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(np.zeros((6, 6)), r"float64 \(6, 6\)"), (np.zeros((1, 6, 6), np.float32), r"float32 \(1, 6, 6\)")],
)
def test_an_approximation_in_another_layout_or_dtype_is_refused(wrong: Array, text: str) -> None:
    with pytest.raises(ValueError, match=rf"'w0': its approximation at rank 2 is {text}: expected .* float32 \(6, 6\)"):
        measure(linear(spectrum(*DECAY)), [{"x": EYE}], [2], approximate=lambda group, rank: wrong)


def test_no_weights_need_no_session() -> None:
    def never_run(proto: onnx.ModelProto) -> Session:
        raise AssertionError("no session is needed")

    model = linear(spectrum(*DECAY))
    nothing = measure_sensitivity(model, (), never_run, [], never, lambda *_: 0.5, lambda _: [1], max_feeds=1)
    assert nothing == ()
    assert count_runs((), lambda _: [1], 4, 4) == 0
