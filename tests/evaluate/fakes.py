"""Models and sessions for these tests: tiny ONNX graphs, and sessions made of a Python function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from lowrank_onnx.evaluate.feeds import Feeds, load_feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Feed

Dims = Sequence[int | str | None]


def value(name: str, dims: Dims | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def make_model(
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    initializers: Iterable[onnx.TensorProto] = (),
    *,
    opset: int = 21,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


class FunctionSession:
    """A session whose run is a Python function of the feed."""

    def __init__(
        self,
        function: Callable[[Feed], dict[str, Any]],
        *,
        inputs: Sequence[InputSpec] = (InputSpec("x", "float32", ("n", "c")),),
        outputs: Sequence[str] = ("y",),
        logits: Iterable[str] = (),
    ) -> None:
        self.function = function
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.logits = frozenset(logits)
        self.runs = 0

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        self.runs += 1
        values = self.function(feed)
        return {name: values[name] for name in (self.outputs if outputs is None else outputs)}


def as_feeds(arrays: Iterable[Any], inputs: Sequence[InputSpec] = (InputSpec("x", "float32", ()),)) -> Feeds:
    """Feeds with one array each for the input `x`."""
    return load_feeds([{"x": array} for array in arrays], inputs)
