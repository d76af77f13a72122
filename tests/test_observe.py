from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.feeds import Feeds, load_feeds
from lowrank_onnx.evaluate.session import Session, open_session
from lowrank_onnx.forms import PAIR
from lowrank_onnx.observe import Observation, add_shape_outputs, observe_positions
from lowrank_onnx.types import Rearrangement, Scope, Site, WeightRef
from tests.evaluate.fakes import make_model, value


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def site(name: str, counted: str, features: int, *, reads: str, writes: str, scope: Scope = ()) -> Site:
    arrangement = Rearrangement((4, 6), (0, 1), (1, 4, 6))
    return Site(
        name=name,
        scope=scope,
        node_index=0,
        op_type="MatMul",
        weight=WeightRef(scope, "w", "initializer", "float32", (4, 6)),
        to_matrices=arrangement,
        forms=(PAIR,),
        input=reads,
        output=writes,
        counted=counted,
        counted_features=features,
    )


def two_layers() -> onnx.ModelProto:
    """x (n, t, 4) -> h (n, t, 6) -> relu -> y (n, t, 2)."""
    return make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["h.shape"]),  # a name that an instrumented copy would like to use
            helper.make_node("MatMul", ["h.shape", "v"], ["y"]),
        ],
        [value("x", ["n", "t", 4])],
        [value("y", None)],
        [weight("w", 4, 6), weight("v", 6, 2)],
    )


SITES = [site("first", "x", 4, reads="x", writes="h"), site("second", "y", 2, reads="h.shape", writes="y")]


def run(proto: onnx.ModelProto) -> Session:
    onnx.checker.check_model(proto)
    return open_session(proto.SerializeToString())


def feeds_of(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> Feeds:
    arrays = [{"x": np.zeros(shape, np.float32)} for shape in shapes]
    return load_feeds(arrays, open_session(model.SerializeToString()).inputs)


def test_positions_and_shapes_are_those_of_the_run() -> None:
    model = two_layers()
    before = model.SerializeToString()
    assert observe_positions(model, SITES, run, feeds_of(model, (3, 5, 4), (1, 1, 4))) == {
        "first": Observation(15, (3, 5, 4), (3, 5, 6)),
        "second": Observation(15, (3, 5, 6), (3, 5, 2)),
    }
    assert model.SerializeToString() == before


def test_several_feeds_are_averaged() -> None:
    model = two_layers()
    feeds = feeds_of(model, (3, 5, 4), (1, 4, 4), (9, 9, 4))
    assert observe_positions(model, SITES, run, feeds, max_feeds=2)["first"] == Observation(10, (3, 5, 4), (3, 5, 6))


def test_positions_of_a_convolution() -> None:
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])],
        [value("x", ["n", 3, "h", "w_"])],
        [value("y", None)],
        [weight("w", 8, 3, 3, 3)],
    )
    sites = [site("conv", "y", 8, reads="x", writes="y")]
    seen = observe_positions(model, sites, run, feeds_of(model, (2, 3, 10, 8)))
    assert seen == {"conv": Observation(2 * 5 * 4, (2, 3, 10, 8), (2, 8, 5, 4))}


def test_only_shapes_are_returned() -> None:
    sessions: list[Session] = []

    def spy(proto: onnx.ModelProto) -> Session:
        sessions.append(run(proto))
        return sessions[-1]

    model = two_layers()
    observe_positions(model, SITES, spy, feeds_of(model, (1, 1, 4)))
    (session,) = sessions
    assert session.outputs == ("x.shape", "h.shape.0", "y.shape", "h.shape.shape")
    values = session.run({"x": np.zeros((1, 1, 4), np.float32)})
    assert all(array.dtype == np.int64 and array.shape == (3,) for array in values.values())


def test_weights_may_be_restored_by_the_caller() -> None:
    model = two_layers()
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    for tensor in skeleton.graph.initializer:
        tensor.ClearField("raw_data")

    def restore(proto: onnx.ModelProto) -> Session:
        for stripped, full in zip(proto.graph.initializer, model.graph.initializer, strict=True):
            stripped.CopyFrom(full)
        return run(proto)

    assert observe_positions(skeleton, SITES, restore, feeds_of(model, (2, 2, 4)))["first"].positions == 4


def _branches() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["x.shape"])], "then", [], [value("x.shape", None)]
    )
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "else", [], [value("z", None)])
    condition = numpy_helper.from_array(np.array(True), "condition")
    nodes = [helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=other)]
    return make_model(nodes, [value("x", ["n", 4])], [value("y", None)], [weight("w", 4, 6), condition])


def test_sites_in_subgraphs_are_absent() -> None:
    model = _branches()
    inner = site("then/m", "x", 4, reads="x", writes="x.shape", scope=((0, "then_branch"),))
    assert observe_positions(model, [inner], run, feeds_of(model, (2, 4))) == {}
    outer = site("outer", "x", 4, reads="x", writes="y")
    assert observe_positions(model, [inner, outer], run, feeds_of(model, (2, 4))) == {
        "outer": Observation(2, (2, 4), (2, 6))
    }


def test_names_of_subgraphs_are_not_taken_again() -> None:
    _, names = add_shape_outputs(_branches(), ["x"])
    assert names == {"x": "x.shape.0"}


def test_faults_are_told() -> None:
    model = two_layers()
    with pytest.raises(ModelError, match="the main graph has no value 'nothing' to observe"):
        observe_positions(model, [site("s", "nothing", 1, reads="x", writes="y")], run, feeds_of(model, (1, 1, 4)))
    with pytest.raises(UsageError, match="max_feeds 0: expected at least 1"):
        observe_positions(model, SITES, run, feeds_of(model, (1, 1, 4)), max_feeds=0)
    with pytest.raises(UsageError, match="there is no feed to observe the model on"):
        observe_positions(model, SITES, run, Feeds("none", synthetic=False, samples=0, groups=()))


def test_an_unused_input_needs_no_value_of_its_own() -> None:
    model = two_layers()
    model.graph.input.append(value("unused", ["n"]))
    session = open_session(model.SerializeToString())
    feed: dict[str, Any] = {"x": np.zeros((1, 2, 4), np.float32), "unused": np.zeros(1, np.float32)}
    seen = observe_positions(model, SITES, run, load_feeds([feed], session.inputs))
    assert seen["first"].positions == 2
