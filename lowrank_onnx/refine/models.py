"""The two models of a walk: the original, of which rows are wanted, and the compressed one, with the factors so far.

Every value of the original that passes a cut is one of the compressed model as well, by the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from lowrank_onnx.attempt import Workshop
from lowrank_onnx.evaluate import Session, open_session
from lowrank_onnx.forms import Pivoted
from lowrank_onnx.model_io import Model, base_dir, model_bytes, new_tensor_proto
from lowrank_onnx.model_io.store import Provider as TensorProvider
from lowrank_onnx.passes.dataflow import Dataflow, changed_values, read_dataflow
from lowrank_onnx.passes.redirect import redirect_weights
from lowrank_onnx.passes.rewrite import rewrite
from lowrank_onnx.refine.ahead import Ahead, Wanted
from lowrank_onnx.refine.batches import Batches
from lowrank_onnx.refine.pieces import Bounds, Course, Track, Waiting
from lowrank_onnx.refine.readings import StepReadings, find_readings
from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.refine.side_by_side import side_by_side
from lowrank_onnx.refine.steps import Step, Steps
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, NewTensor, Site, SiteChoice
from lowrank_onnx.weight_reader import WeightReader

ROWS_PER_FEATURE = (4, 32)
"""Rows that go into the equations of one step, for each input feature: where there are as many, the first number; and
up to the second as long as adding them up takes at most `WORK_SHARE` of the work of the sites themselves. With at least
8 the errors of the shipped VGG, MiniLM-L6 and CRAFT are 0 to 2 % smaller, and adding up takes up to twice as long."""

LEAST_ROWS = 6144
"""Of a step however few features it has, where there are as many."""

WORK_SHARE = 0.5
"""On the shipped VGG with 512 or 2,048 images, eight times as many rows take 1 to 2 % of the error on unseen ones;
twice as many take nothing that shows, on it, the ViT or MiniLM-L6."""

SHARE_AHEAD = 4
"""Of the memory for values that wait, one part in so many is for rows of the original."""


@dataclass(frozen=True, slots=True)
class Models:
    """The two models, side by side.

    Attributes
    ----------
    ahead : the original, whose rows are there when they are wanted.
    compressed : runs with the factors as they are when a piece's turn comes.
    readings : of each step whose inputs may differ in the two, by its number.
    waiting : the values of both.
    """

    ahead: Ahead
    compressed: Track
    readings: Mapping[int, StepReadings]
    waiting: Waiting

    def close(self) -> None:
        """Give up all values."""
        self.waiting.close()


def open_models(
    workshop: Workshop,
    flow: Dataflow,
    steps: Steps,
    replaced: Sequence[Replaced],
    spool: FactorSpool,
    feeds: Batches,
    bounds: Bounds,
    seed: int,
) -> Models:
    """Set up both models; nothing is run yet.

    Parameters
    ----------
    workshop : the original, where it runs, and a directory for values that don't fit into memory.
    flow, steps : its nodes, and what is solved in which order.
    replaced : the weights with factors.
    spool : their factors; read when a piece with one of their sites is about to run.
    feeds : what to run on. The last ones are given up where `bounds` leave no room for them.
    bounds : of the values that wait.
    seed : of the rows that are picked.
    """
    model = workshop.model
    changed = changed_values(flow, {_outer_node(site) for one in replaced for site in one.group.sites})
    positions, runs = workshop.original.positions, len(feeds.feeds)
    places = {node: place for place, node in enumerate(steps.order)}
    readings, wanted = {}, {}
    for number, step in enumerate(steps.steps):
        if step.value in changed or any(one.residual and one.residual.carried in changed for one in step.members):
            applied = positions[step.members[0].site.name] * runs
            rows = _rows_of(step, applied)
            readings[number] = find_readings(model, flow, step, changed, min(rows, applied))
            wanted[number] = _wanted(step, readings[number], places, rows, applied, -(-applied // len(feeds.batches)))
    waiting = Waiting(workshop.directory, bounds, len(feeds.batches))
    at_once, threads = side_by_side(workshop.original)
    course = Course(flow, steps.order, feeds.load, waiting, at_once)

    def start(providers: Mapping[str, TensorProvider], piece: onnx.ModelProto) -> Session:
        proto = model_bytes(model.with_rewrite(piece, providers))
        return open_session(proto, base_dir=base_dir(model), provider=workshop.original.provider, threads=threads)

    compressed, providers = _compressed(model, replaced, spool)
    original = Track(course, "original", flow, partial(start, {}))
    return Models(
        ahead=Ahead(original, waiting, wanted, bounds.memory // SHARE_AHEAD, seed),
        compressed=Track(course, "compressed", compressed, partial(start, providers)),
        readings=readings,
        waiting=waiting,
    )


def wanted_rows(in_features: int, out_features: int, positions: int) -> int:
    """Rows of all feeds. Adding up n rows takes n in**2 multiplications, the sites positions in out."""
    least, most = (number * in_features for number in ROWS_PER_FEATURE)
    return max(least, LEAST_ROWS, min(most, int(WORK_SHARE * positions * out_features) // in_features))


def _rows_of(step: Step, positions: int) -> int:
    """Rows of a step whose sites are applied at so many positions."""
    sites = [member.site for member in step.members]
    return wanted_rows(sites[0].shape.in_features, sum(site.shape.out_features for site in sites), positions)


def _wanted(
    step: Step, readings: StepReadings, places: Mapping[int, int], rows: int, positions: int, at_once: int
) -> Wanted:
    """What is wanted of the original for a step: so many rows of its positions in all, of which one run has some."""
    sites = [member.site for member in step.members]
    dtype = np.float64 if sites[0].weight.dtype == "float64" else np.float32
    kept = sum(one.layout.groups * one.layout.in_features for one in readings.all)
    at = [places[site.node_index] for site in sites]
    return Wanted(
        first=min(at),
        last=max(at),
        readings=readings.all,
        dtype=dtype,
        rows=rows,
        nbytes=(min(rows, positions) + at_once) * kept * np.dtype(dtype).itemsize,
        name=f"{step.value}\0{step.layout!r}",
    )


def _compressed(
    model: Model, replaced: Sequence[Replaced], spool: FactorSpool
) -> tuple[Dataflow, Mapping[str, TensorProvider]]:
    """The compressed model, and where its new tensors come from.

    Factors are written as they will be in the end: they take less time than their product. But outputs that come in
    another order there wouldn't be the original's.
    """
    providers: dict[str, TensorProvider] = {}
    forms = {one.weight: one.factors(spool).form for one in replaced}
    whole = [one for one in replaced if isinstance(form := forms[one.weight], Pivoted) and form.order]
    apart = {one.weight for one in whole}

    def product(position: int, name: str) -> onnx.TensorProto:
        one = whole[position]
        providers[name] = partial(one.product, spool)
        return new_tensor_proto(name, one.weight.dtype, one.weight.shape, name)

    def factor(tensor: NewTensor, key: str) -> onnx.TensorProto:
        return new_tensor_proto(tensor.name, tensor.dtype, tensor.shape, key)

    def values_of(new: NewTensor) -> Array:
        bias = None if new.bias is None else WeightReader(model, [new.bias]).read(new.bias)
        return spool.tensor(new, forms[new.weight], bias)

    redirected = model.skeleton
    if whole:
        redirected = redirect_weights(model.skeleton, [one.group.sites for one in whole], product)
    choices = [
        SiteChoice(site, forms[one.weight], one.rank, "", 0.0, 0.0)
        for one in replaced
        if one.weight not in apart
        for site in one.group.sites
    ]
    written = rewrite(redirected, choices, tool_version="", placeholder=factor)
    providers |= {tensor.key: partial(values_of, tensor) for tensor in written.new_tensors}
    return read_dataflow(written.skeleton), providers


def _outer_node(site: Site) -> int:
    """The node of the main graph that is, or holds, a site."""
    return site.scope[0][0] if site.scope else site.node_index
