"""Small deep models, planned at fixed ranks: what the tests of the stage share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper as h

from lowrank_onnx import passes
from lowrank_onnx.attempt import Workshop
from lowrank_onnx.calibration import weight_moments
from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.candidates import Candidate
from lowrank_onnx.chain_factors import chain_maker
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import OP_TYPES, Config
from lowrank_onnx.evaluate import Session, compare_outputs, load_feeds, open_session
from lowrank_onnx.factor_families import spool_factors
from lowrank_onnx.forms import MATRIX, PAIR, ConvChain, Pivoted
from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.model_io import load_model, model_bytes
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.shrinkage import ShrunkMoments
from lowrank_onnx.observed import observe
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.preparation import factorize_options
from lowrank_onnx.progress import SILENT
from lowrank_onnx.refine.batches import Batch, Batches
from lowrank_onnx.refine.models import Models, open_models
from lowrank_onnx.refine.pieces import Bounds
from lowrank_onnx.refine.replaced import replaced_weights
from lowrank_onnx.refine.stage import BOUNDS
from lowrank_onnx.refine.steps import Steps, plan_steps
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import make_model, value

OPTIONS = factorize_options(Config(method="svd"))
WIDTH = 16


def layers(depth: int, *, residual: bool = False, seed: int = 0) -> onnx.ModelProto:
    """`depth` times MatMul, bias, Relu; with `residual`, blocks x + second(relu(first(x))) instead, scaled by 0.5."""
    generator = np.random.default_rng(seed)
    weights: dict[str, Array] = {"half": np.array(0.5, np.float32)}
    nodes, here = [], "x"
    for index in range(depth):
        scale = 1.5 / np.sqrt(WIDTH)
        weights[f"w{index}"] = (generator.standard_normal((WIDTH, WIDTH)) * scale).astype(np.float32)
        weights[f"b{index}"] = generator.standard_normal(WIDTH).astype(np.float32)
        nodes.append(h.make_node("MatMul", [here if index % 2 == 0 else f"r{index - 1}", f"w{index}"], [f"m{index}"]))
        nodes.append(h.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"]))
        if residual and index % 2:
            nodes.append(h.make_node("Mul", [f"a{index}", "half"], [f"s{index}"]))
            nodes.append(h.make_node("Add", [here, f"s{index}"], [f"r{index}"]))
            here = f"r{index}"
        else:
            nodes.append(h.make_node("Relu", [f"a{index}"], [f"r{index}"]))
            here = here if residual else f"r{index}"
    nodes.append(h.make_node("Identity", [nodes[-1].output[0]], ["y"]))
    return make_model(nodes, [value("x", ["n", WIDTH])], [value("y", ["n", WIDTH])], weights)


def inputs(count: int, rows: int = 48, *, seed: int = 1, width: int = WIDTH) -> list[Mapping[str, Array]]:
    """Feeds whose features are correlated, as those of real models are."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((width, width)) * 0.8 ** np.arange(width)
    return [{"x": (generator.standard_normal((rows, width)) @ mixing.T).astype(np.float32)} for _ in range(count)]


def workshop(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    directory: Path,
    rank: int | None,
    *,
    whiten: bool = True,
) -> tuple[Workshop, tuple[Choice, ...]]:
    """Every weight whitened and factorized at `rank`, or None at its full rank, and chosen at that."""
    loaded = load_model(model)
    sites, _ = passes.find_sites(loaded.skeleton, op_types=OP_TYPES)
    groups = group_by_weight(sites)
    observed = observe(loaded, sites, list(feeds), provider="cpu", seed=0)
    ranks = [group.shape.max_rank if rank is None else rank for group in groups]
    moments = weight_moments(
        loaded.skeleton, groups, observed.run, observed.calibration, seed=0, directory=directory, progress=SILENT
    )
    found = {weight: moment for weight, moment in moments.items() if isinstance(moment, Moment) and whiten}
    spool = FactorSpool(directory)
    spool_factors(loaded, groups, [{MATRIX: r} for r in ranks], spool, OPTIONS, ShrunkMoments(found), SILENT)
    choices = tuple(
        Choice(Candidate(group.forms[0].name, r, 0, 0, 0.0), "") for group, r in zip(groups, ranks, strict=True)
    )
    return Workshop(loaded, groups, spool, directory, observed), choices


def in_form(shop: Workshop, choices: Sequence[Choice], name: str, rank: int) -> tuple[Workshop, tuple[Choice, ...]]:
    """The same weights in another form: pivoted from the first column on, or a chain of convolutions."""
    spool = shop.spool.branch()
    make = chain_maker(shop.model, shop.groups, {}, "cpu")
    for group in shop.groups:
        form = group.form(name)
        if isinstance(form, ConvChain):
            spool.put(group.weight, form, rank, *make(group.weight, form, rank))
            continue
        pair = spool.get(group.weight, PAIR, rank)
        found = pivot_factors(pair.values("left")[0], pair.values("right")[0], 0)
        assert found is not None
        parts = {"left": found.left[None].astype(np.float32), "after": found.after[None].astype(np.float32)}
        spool.put(group.weight, Pivoted(0), rank, parts, "svd")
    return replace(shop, spool=spool), tuple(Choice(replace(choice.candidate, form=name)) for choice in choices)


def opened(shop: Workshop, choices: Sequence[Choice], bounds: Bounds = BOUNDS) -> tuple[Models, Steps]:
    """Both models as a walk has them before its first step, and the steps; the first feed validates."""
    flow = read_dataflow(shop.model.skeleton)
    weights = replaced_weights(shop.groups, choices)
    steps = plan_steps(flow, weights)
    feeds = load_feeds(list(shop.original.calibration), shop.original.session.inputs)
    batches = Batches(feeds, tuple(Batch((number,), number == 0) for number in range(len(feeds))))
    return open_models(shop, flow, steps, weights, shop.spool, batches, bounds, seed=0), steps


def compressed(shop: Workshop, choices: Sequence[Choice], spool: FactorSpool) -> Session:
    candidate = build_candidate(shop.model, shop.groups, choices, spool, measure=False)
    return open_session(model_bytes(candidate.model))


def error_on(
    shop: Workshop, choices: Sequence[Choice], spool: FactorSpool, feeds: Sequence[Mapping[str, Array]]
) -> float:
    """The relative error of the outputs."""
    loaded = load_feeds(list(feeds), shop.original.session.inputs)
    (output,) = compare_outputs(shop.original.session, compressed(shop, choices, spool), loaded)
    return output.error
