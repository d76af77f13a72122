"""The recipes of other work on one workbench, so that all see the same weights, feeds and budgets.

Each is re-implemented from its paper, as far as that needs no fine-tuning; its `source` says which, and what is left
out. Uniform ratios and greedy ranks leave a weight of few rows or columns as it is: cut like the others, a classifier
of ten classes would ruin any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.narrow_models import quantize_dynamically
from benchmarks.peer_factors import spool_whitened, write_pivoted
from benchmarks.peer_ranks import Ranks, greedy_ranks, is_large, largest_rank, uniform_ranks
from benchmarks.planning_variants import BALF, DEFAULTS, VARIANTS, Workbench
from lowrank_onnx.calibration import stored_layout
from lowrank_onnx.candidates import Candidate
from lowrank_onnx.chain_factors import chain_maker
from lowrank_onnx.choose import Choice, CostName
from lowrank_onnx.factor_families import spool_factors
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.forms import MATRIX, PAIR, PIVOTED, ConvSpatial, ConvTucker, Form
from lowrank_onnx.progress import SILENT
from lowrank_onnx.sensitivity.damage import Sensitivity
from lowrank_onnx.sensitivity.measure import measure_sensitivity
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, WeightRef, numpy_dtype
from lowrank_onnx.weights import SharedWeight

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The compression ratios that AIMET tries of each layer by default (ten candidates, 1 among them)."""

EXACT: Any = "eigen"
"""A method of the kernel that no configuration names: the factors of an SVD, sooner, by eigenvectors."""

GREEDY_FEEDS = 2
"""Calibration feeds on which each of them is judged."""


class PeerBench(Workbench):
    """A workbench that keeps what one recipe needs at every share; without tables, which no recipe treats."""

    op_types = tuple(name for name in DEFAULTS.op_types if name != "Gather")

    @functools.cached_property
    def whitened(self) -> FactorSpool:
        """SVD-LLM's factors, up to the largest rank that PIFA may take of a product."""
        spool = FactorSpool(self.scratch("cholesky"))
        ranks = {
            group.weight: form.largest_useful_rank(group.shape)
            for group in self.groups
            if is_large(group)
            for form in [PIVOTED if is_product(group) else group.forms[0]]
        }
        spool_whitened(self.model, self.groups, ranks, self.moments(), spool)
        return spool

    @functools.cached_property
    def plain(self) -> FactorSpool:
        """Factors nearest to the weights themselves, of matrices and of convolutions as chains."""
        spool = FactorSpool(self.scratch("plain"), chain_maker(self.model, self.groups, {}, DEFAULTS.device))
        ranks = [{MATRIX: group.forms[0].largest_useful_rank(group.shape)} for group in self.groups]
        wanted = [found if found[MATRIX] else {} for found in ranks]
        options = FactorizeOptions(method=EXACT, power_iterations=1, oversampling=0, seed=0, device=DEFAULTS.device)
        spool_factors(self.model, self.groups, wanted, spool, options, {}, SILENT)
        return spool

    @functools.cached_property
    def greedy_options(self) -> dict[WeightRef, list[tuple[Form, int]]]:
        """For each layer the ranks of AIMET's ratios, ascending."""
        found = {}
        for group in filter(is_large, self.groups):
            form = form_of(group, ConvSpatial)
            ranks = dict.fromkeys(largest_rank(group, form, ratio) for ratio in RATIOS)
            found[group.weight] = [(form, rank) for rank in ranks if rank]
        return {weight: options for weight, options in found.items() if options}

    @functools.cached_property
    def greedy_scores(self) -> list[Sensitivity]:
        """What each layer alone does to the outputs at each of those ranks."""
        options = self.greedy_options

        def approximate(group: SharedWeight, rank: int) -> Array:
            matrices = self.plain.get(group.weight, options[group.weight][0][0], rank).approximate()
            return stored_layout(matrices, group.sites[0]).astype(numpy_dtype(group.weight.dtype))

        measured = measure_sensitivity(
            self.model.skeleton,
            [group for group in self.groups if group.weight in options],
            self.observed.run,
            self.observed.calibration,
            approximate,
            lambda group, rank: 1.0 / (1 + rank),  # any that falls: only what is measured decides
            lambda group: tuple(rank for _, rank in options[group.weight]),
            max_feeds=GREEDY_FEEDS,
        )
        return [found for found in measured if isinstance(found, Sensitivity)]

    def write_ranks(self, spool: FactorSpool, ranks: Ranks, target: Path) -> None:
        """Write the model with these ranks."""
        self.write_with(spool, [_choice(group, ranks) for group in self.groups], target)


Write = Callable[[PeerBench, CostName, float, Path], float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to compress a model to a share of its parameters or MACs.

    Attributes
    ----------
    name, source : what it is called, and where it is from.
    write : writes the model of a workbench at a share of the cost; returns the share that is kept.
    """

    name: str
    source: str
    write: Write


def _by_variant(name: str) -> Write:
    """A way that the planner's stages make; exact factors come from eigenvectors in place of a full SVD."""
    variant = next(variant for variant in VARIANTS if variant.name == name)
    exact = replace(variant, method=EXACT) if variant.method == "svd" else variant

    def write(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
        planned = bench.plan(exact, cost, share)
        bench.write(exact, planned.choices, target)
        return planned.kept

    return write


def write_svd_llm(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
    """SVD-LLM: whitening by Cholesky, the same ratio for every weight."""
    ranks, kept = uniform_ranks(bench, cost, share, lambda group: group.forms[0])
    bench.write_ranks(bench.whitened, ranks, target)
    return kept


def write_pifa(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
    """PIFA: SVD-LLM's factors, products in the pivoted form with a Gather."""
    ranks, kept = uniform_ranks(bench, cost, share, lambda g: PIVOTED if is_product(g) else g.forms[0])
    pivoted = {weight: rank for weight, (form, rank) in ranks.items() if form == PIVOTED}
    others = {weight: entry for weight, entry in ranks.items() if weight not in pivoted}
    bench.write_ranks(bench.whitened, others, target)
    factors = []
    for group in bench.groups:
        if group.weight in pivoted:
            stored = bench.whitened.get(group.weight, PAIR, pivoted[group.weight])
            factors += [(site, stored.values("left")[0], stored.values("right")[0]) for site in group.sites]
    write_pivoted(target, target, factors)
    return kept


def write_tucker(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
    """Tucker-2 of convolutions, plain SVD of products, the same ratio for every weight."""
    ranks, kept = uniform_ranks(bench, cost, share, lambda group: form_of(group, ConvTucker))
    bench.write_ranks(bench.plain, ranks, target)
    return kept


def write_greedy(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
    """AIMET's greedy selection: spatial SVD of convolutions, SVD of products; ranks by what each layer alone does."""
    ranks, kept = greedy_ranks(bench, cost, share, bench.greedy_options, bench.greedy_scores)
    bench.write_ranks(bench.plain, ranks, target)
    return kept


def write_int8(bench: PeerBench, cost: CostName, share: float, target: Path) -> float:
    """Dynamic quantization by onnxruntime, of the original; it has no budget."""
    del cost, share
    assert bench.model.path is not None
    quantize_dynamically(bench.model.path, target, per_channel=True)
    return 1.0


INT8 = "int8"
OURS_INT8 = "this program, then int8"

RECIPES = (
    Recipe("plain SVD", "truncation, energy ranks", _by_variant("plain SVD")),
    Recipe("RSVD", "arXiv 2604.02659 with one iteration (q = 1), energy ranks", _by_variant("RSVD (q=1)")),
    Recipe("RSI", "re-implemented from arXiv 2604.02659, q = 4, energy ranks", _by_variant("RSI (q=4)")),
    Recipe("BALF", "re-implemented from arXiv 2509.25136: whitening, energy ranks", _by_variant(BALF)),
    Recipe(
        "SVD-LLM",
        "re-implemented from arXiv 2403.07378: whitening by Cholesky, uniform ratio, no update",
        write_svd_llm,
    ),
    Recipe(
        "PIFA",
        "re-implemented from arXiv 2501.19090: pivots by QR on SVD-LLM's factors, uniform ratio, without its "
        "reconstruction; convolutions, of which it says nothing, as SVD-LLM",
        write_pifa,
    ),
    Recipe(
        "AIMET greedy",
        "re-implemented from AIMET's documentation: spatial SVD and SVD, greedy ranks by the outputs' error",
        write_greedy,
    ),
    Recipe(
        "Tucker-2",
        "re-implemented from arXiv 1511.06530, the method of aidge-compression, with a uniform ratio in place of "
        "estimated ranks; products by SVD",
        write_tucker,
    ),
    Recipe(INT8, "onnxruntime's quantize_dynamic, weights of 8 bits with a scale for each output", write_int8),
)

AIDGE = (
    "aidge-compression 0.0.5.dev0 was tried on the VGG that ships here: with aidge-core 0.10.1 it refuses the graph; "
    "with 0.10.0.post3 it decomposes convolutions, fails to write the factors (an assertion in TensorImpl.cpp), and "
    "replaces none."
)


def form_of(group: SharedWeight, kind: type[Form]) -> Form:
    """The weight's form of a kind, or its plain one."""
    return next((form for form in group.forms if isinstance(form, kind)), group.forms[0])


def is_product(group: SharedWeight) -> bool:
    """Whether every site is a product ``x @ W`` of the main graph, perhaps with a bias."""
    return PIVOTED in group.forms and all(site.op_type in ("MatMul", "Gemm") and not site.scope for site in group.sites)


def _choice(group: SharedWeight, ranks: Ranks) -> Choice:
    """As the library's own stages want it; nothing is predicted of it."""
    if group.weight not in ranks:
        return Choice(Candidate("dense", None, group.shape.parameters, None, 0.0), "left dense")
    form, rank = ranks[group.weight]
    return Choice(Candidate(form.name, rank, form.parameters(group.shape, rank), None, 0.0))
