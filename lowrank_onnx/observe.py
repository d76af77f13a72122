"""What really flows through a model: the shapes at each site, seen in a run instead of inferred from the graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.types import Site


@dataclass(frozen=True, slots=True)
class Observation:
    """What one site saw.

    Attributes
    ----------
    positions : how often its matrices are applied in one run, the mean over the feeds, rounded.
    input_shape, output_shape : of the activations read and written, on the first feed.
    """

    positions: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def observe_positions(
    skeleton: onnx.ModelProto,
    sites: Sequence[Site],
    run: Callable[[onnx.ModelProto], Runner],
    feeds: Feeds,
    *,
    max_feeds: int = 1,
) -> dict[str, Observation]:
    """Count the positions of every site of the main graph by running the model.

    A copy of the model gets a Shape node for each activation concerned, and those shapes as its only outputs: what is
    returned is tiny, and onnxruntime drops every node that they don't depend on. Sites in subgraphs and functions have
    no values that the main graph could return: they are absent from the result.

    Parameters
    ----------
    skeleton : the model, with or without its weights; it is not changed.
    sites : the sites; `Site.name` is the key of the result.
    run : opens a session for the copy (and restores the weights first, where the skeleton lacks them).
    feeds : feeds for the model.
    max_feeds : how many of them to run.

    Raises
    ------
    UsageError : there is no feed, or `max_feeds` is below 1.
    ModelError : the copy can't run, or a site names a value that the graph doesn't have.
    """
    if max_feeds < 1:
        raise UsageError(f"max_feeds {max_feeds}: expected at least 1")
    seen = [site for site in sites if site.scope == ()]
    if not seen:
        return {}
    wanted = list(dict.fromkeys(name for site in seen for name in (site.counted, site.input, site.output)))
    instrumented, shape_names = add_shape_outputs(skeleton, wanted)
    session = run(instrumented)
    runs: list[dict[str, tuple[int, ...]]] = []
    for feed in itertools.islice(feeds, max_feeds):
        read = {name: feed[name] for name in feed if name in {spec.name for spec in session.inputs}}
        values = session.run(read)
        runs.append({name: tuple(int(size) for size in values[shape_names[name]]) for name in wanted})
    if not runs:
        raise UsageError("there is no feed to observe the model on: give at least one")
    return {
        site.name: Observation(
            positions=round(
                sum(math.prod(shapes[site.counted]) // site.counted_features for shapes in runs) / len(runs)
            ),
            input_shape=runs[0][site.input],
            output_shape=runs[0][site.output],
        )
        for site in seen
    }


def add_shape_outputs(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Copy a model so that it returns the shapes of the named values of its main graph, and nothing else.

    Returns
    -------
    The copy, and for each name the output that is its shape (int64, 1-D).

    Raises
    ------
    ModelError : the main graph has no value of that name.
    """
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(model)
    graph = instrumented.graph
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(name for node in graph.node for name in node.output)
    taken = set(_value_names(graph))
    outputs: dict[str, str] = {}
    for name in names:
        if name not in known or not name:
            raise ModelError(f"the main graph has no value {name!r} to observe")
        output = next(
            candidate
            for candidate in (f"{name}.shape", *(f"{name}.shape.{number}" for number in range(len(taken) + 1)))
            if candidate not in taken
        )
        taken.add(output)
        outputs[name] = output
    del graph.output[:]
    graph.node.extend(helper.make_node("Shape", [name], [output], name=output) for name, output in outputs.items())
    graph.output.extend(helper.make_tensor_value_info(output, TensorProto.INT64, [None]) for output in outputs.values())
    return instrumented, outputs


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name of a value or node in a graph and in the graphs inside it."""
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for inner in _subgraphs(node):
            yield from _value_names(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs
