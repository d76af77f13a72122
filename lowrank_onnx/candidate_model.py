"""From choices and spooled factors to a rewritten model whose new weights are read when it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from lowrank_onnx import __version__, passes
from lowrank_onnx.choose import Choice
from lowrank_onnx.factorize import FactorSpool, measure_errors
from lowrank_onnx.model_io import Model, new_tensor_proto
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.types import NewTensor, SiteChoice
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class CandidateModel:
    """A rewritten model, and what was written at each site."""

    model: Model
    written: tuple[SiteChoice, ...]


def build_candidate(
    model: Model,
    groups: Sequence[SharedWeight],
    choices: Sequence[Choice],
    spool: FactorSpool,
    *,
    measure: bool,
    progress: Progress = SILENT,
) -> CandidateModel:
    """Rewrite `model` with one choice per weight.

    With `measure`, the errors of the factors are measured as they will be stored, one weight in memory at a time; else
    (attempts of a search) they are left at zero, and nothing of them is shown.
    """
    weights = WeightReader(model, (group.weight for group in groups))
    written: list[SiteChoice] = []
    ranks = {}
    chosen = [(group, choice.candidate.rank) for group, choice in zip(groups, choices, strict=True)]
    with progress.stage("measuring factors" if measure else "rewriting", len(chosen)) as stage:
        for group, rank in chosen:
            stage.advance(detail=group.weight.name)
            if rank is None:
                continue
            ranks[group.weight] = rank
            stored = spool.get(group.weight)
            errors = (0.0, 0.0)
            if measure:
                values = weights.read(group.weight)
                left, right = (stored.read(part, rank).astype(stored.accumulation) for part in ("left", "right"))
                errors = measure_errors(values, group.sites[0].to_matrices, left, right)
            written.extend(SiteChoice(site, rank, stored.solver, *errors) for site in group.sites)
    rewrite = passes.rewrite(model.skeleton, written, tool_version=__version__, placeholder=_placeholder)
    new = {tensor.key: partial(spool.tensor, tensor, ranks[tensor.weight]) for tensor in rewrite.new_tensors}
    return CandidateModel(model.with_rewrite(rewrite.skeleton, new), tuple(written))


def _placeholder(tensor: NewTensor, key: str) -> onnx.TensorProto:
    return new_tensor_proto(tensor.name, tensor.dtype, tensor.shape, key)
