"""The second half of a compression: from choices to a file that was judged."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lowrank_onnx.accounting import Bookkeeping
from lowrank_onnx.attempt import Workshop
from lowrank_onnx.cache import Cache
from lowrank_onnx.candidate_model import build_candidate, make_factors
from lowrank_onnx.config import MaxDrop, MaxError
from lowrank_onnx.judging import judge_staged
from lowrank_onnx.model_io import complete_proto, stage_model
from lowrank_onnx.preparation import factorize_options, refines
from lowrank_onnx.progress import Progress
from lowrank_onnx.refine import refine_factors
from lowrank_onnx.results import CompressionResult, Refinement
from lowrank_onnx.revision import MAX_ROUNDS, Reviser, only_too_slow
from lowrank_onnx.types import Verdict


def finish(
    book: Bookkeeping,
    workshop: Workshop,
    reviser: Reviser,
    target: Path | None,
    cache: Cache,
    *,
    force: bool,
    progress: Progress,
) -> CompressionResult:
    """Refine, rewrite, judge, and write what holds; where only the latency doesn't, choose again and start over.

    A search judged models with the factors as planned. Where the model that it took misses the limit with refined
    ones, it is made as it was judged.
    """
    config, clock = book.config, book.clock
    observed = workshop.observed if config.validate else None
    rounds, refining = 0, refines(config, workshop.observed)
    while True:
        spool = workshop.spool
        with clock.stage("factorize"):
            make_factors(book.groups, book.choices, spool)
        if refining and any(choice.candidate.rank is not None for choice in book.choices):
            options = factorize_options(config)
            refined = refine_factors(workshop, book.choices, options, progress=progress, clock=clock, cache=cache)
            spool, book = refined.spool, replace(book, refinement=refined.report)
        with clock.stage("rewrite"):
            candidate = build_candidate(
                workshop.model,
                book.groups,
                book.choices,
                spool,
                measure=True,
                expansion=workshop.expansion,
                progress=progress,
            )
        with ExitStack() as stack:
            with clock.stage("save"):
                path = target or workshop.directory / "model.onnx"
                staged = stack.enter_context(stage_model(candidate.model, path, force=force))
            with clock.stage("validate"):
                verdict = (
                    None if observed is None else judge_staged(observed, staged, config, workshop.metric, progress)
                )
            if verdict is None or verdict.passed:
                if target is None:
                    return book.written(candidate, staged.file_bytes, verdict, model=complete_proto(candidate.model))
                staged.commit()
                return book.written(candidate, staged.file_bytes, verdict, output=target)
            searched = isinstance(config.budget, MaxDrop | MaxError) and not only_too_slow(verdict, config)
            if refining and searched and _changed(book.refinement):
                refining, book = False, replace(book, refinement=None, notes=(*book.notes, _undone(verdict)))
                continue
            revised = reviser.revise(book.choices, book.search, verdict) if rounds < MAX_ROUNDS else None
            if revised is None:
                return book.rejected(candidate, staged.file_bytes, verdict)
        rounds += 1
        book = replace(book, choices=revised[0], search=(*book.search, *revised[1]))


def _changed(refinement: Refinement | None) -> bool:
    """Whether other factors than the planned ones were judged."""
    return refinement is not None and any(weight.refined for weight in refinement.weights)


def _undone(verdict: Verdict) -> str:
    return f"not refined: with refined factors, {'; '.join(verdict.failures)}"
