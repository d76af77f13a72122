"""From choices and spooled factors to a rewritten model whose new weights are read when it is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from lowrank_onnx import __version__, passes
from lowrank_onnx.absorb import Absorbed, absorb_products
from lowrank_onnx.choose import Choice
from lowrank_onnx.factor_families import work_of
from lowrank_onnx.factorize import measure_errors
from lowrank_onnx.forms import Form
from lowrank_onnx.model_io import Model, new_tensor_proto
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.reorder import reorder_neighbours
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, NewTensor, SiteChoice, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class CandidateModel:
    """A rewritten model, what was written at each site, and the factors that were multiplied into their neighbours."""

    model: Model
    written: tuple[SiteChoice, ...]
    absorbed: tuple[Absorbed, ...]


def build_candidate(
    model: Model,
    groups: Sequence[SharedWeight],
    choices: Sequence[Choice],
    spool: FactorSpool,
    *,
    measure: bool,
    expansion: passes.Expansion | None = None,
    progress: Progress = SILENT,
) -> CandidateModel:
    """Rewrite `model`, whose calls are written out, with one choice per weight; calls that nothing changed fold back.

    With `measure`, the errors of the factors are measured as they will be stored, one weight in memory at a time; else
    (attempts of a search) they are left at zero, and nothing of them is shown.
    """
    weights = WeightReader(model, _all_refs(groups))
    make_factors(groups, choices, spool)
    written: list[SiteChoice] = []
    forms: dict[WeightRef, Form] = {}
    with progress.stage("measuring factors" if measure else "rewriting", len(groups)) as stage:
        for group, choice in zip(groups, choices, strict=True):
            stage.advance(detail=group.weight.name)
            rank = choice.candidate.rank
            if rank is None:
                continue
            stored = spool.get(group.weight, group.form(choice.candidate.form), rank)
            forms[group.weight] = stored.form
            errors = (0.0, 0.0)
            if measure:
                values = weights.read(group.weight)
                errors = measure_errors(values, group.sites[0].to_matrices, stored.approximate())
            written.extend(SiteChoice(site, stored.form, rank, stored.solver, *errors) for site in group.sites)
    rewrite = passes.rewrite(model.skeleton, written, tool_version=__version__, placeholder=_placeholder)

    def values_of(new: NewTensor) -> Array:
        bias = None if new.bias is None else weights.read(new.bias)
        return spool.tensor(new, forms[new.weight], bias)

    made = {tensor.key: partial(values_of, tensor) for tensor in rewrite.new_tensors}
    rewritten = reorder_neighbours(model.with_rewrite(rewrite.skeleton, made), written)
    sites = [site for group in groups for site in group.sites]
    absorption = absorb_products(rewritten, passes.linear_outputs(rewritten.skeleton, sites))
    finished = absorption.model
    if expansion is not None:
        finished = finished.with_rewrite(passes.fold_calls(finished.skeleton, expansion), {})
    return CandidateModel(finished, tuple(written), absorption.absorbed)


def make_factors(groups: Sequence[SharedWeight], choices: Sequence[Choice], spool: FactorSpool) -> None:
    """Make what the choices are written with and the spool doesn't have yet; its branches made later have it too."""
    spool.fill(
        (group.weight, group.form(choice.candidate.form), choice.candidate.rank, work_of(group))
        for group, choice in zip(groups, choices, strict=True)
        if choice.candidate.rank is not None
    )


def _all_refs(groups: Sequence[SharedWeight]) -> Iterator[WeightRef]:
    for group in groups:
        yield group.weight
        yield from (site.bias for site in group.sites if site.bias is not None)


def _placeholder(tensor: NewTensor, key: str) -> onnx.TensorProto:
    return new_tensor_proto(tensor.name, tensor.dtype, tensor.shape, key)
