"""One attempt of a search: the model of some choices, in a scratch file, against the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.choose import Choice
from lowrank_onnx.evaluate import Feeds, Session, compare_outputs, open_session
from lowrank_onnx.evaluate.scores import MetricJudge
from lowrank_onnx.model_io import Model, stage_model
from lowrank_onnx.observed import Observed
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import LatencyComparison, MetricComparison
from lowrank_onnx.weights import SharedWeight

Stopwatch: TypeAlias = Callable[[Session, Session, Feeds], LatencyComparison]
"""Times the original against another model."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a model is made from once the factors are there, where, and the original to hold against it.

    `observed` is None where the original was never run; then nothing can be searched for. `metric` is the user's own
    measure, where there is one.
    """

    model: Model
    groups: tuple[SharedWeight, ...]
    spool: FactorSpool
    directory: Path
    observed: Observed | None
    metric: MetricJudge | None = None

    @property
    def original(self) -> Observed:
        """The original as it runs (`ValueError` where it was never run)."""
        if self.observed is None:
            raise ValueError("a search needs a run of the original")
        return self.observed


def error_of(workshop: Workshop, choices: Sequence[Choice]) -> float:
    """The relative output error of the model that these choices make, on the held-out feeds."""
    if _is_original(choices):
        return 0.0
    with _attempt(workshop, choices) as session:
        return _error(workshop.original, session)


def race(workshop: Workshop, stopwatch: Stopwatch, choices: Sequence[Choice]) -> tuple[float, float]:
    """The relative output error and the speedup of the model that these choices make, on the held-out feeds."""
    if _is_original(choices):
        return 0.0, 1.0
    with _attempt(workshop, choices) as session:
        original = workshop.original
        return _error(original, session), stopwatch(original.session, session, original.held_out).speedup


def drop_of(workshop: Workshop, choices: Sequence[Choice]) -> tuple[float, MetricComparison]:
    """The relative output error on the held-out feeds, and the task metric, of the model that these choices make."""
    judge = workshop.metric
    if judge is None:
        raise ValueError("a search for a drop needs a metric")
    if _is_original(choices):
        return 0.0, judge(workshop.original.session)
    with _attempt(workshop, choices) as session:
        return _error(workshop.original, session), judge(session)


def _is_original(choices: Sequence[Choice]) -> bool:
    return all(choice.candidate.rank is None for choice in choices)


@contextmanager
def _attempt(workshop: Workshop, choices: Sequence[Choice]) -> Iterator[Session]:
    candidate = build_candidate(workshop.model, workshop.groups, choices, workshop.spool, measure=False)
    with stage_model(candidate.model, workshop.directory / "attempt.onnx") as staged:
        yield open_session(staged.path, provider=workshop.original.provider)


def _error(original: Observed, session: Session) -> float:
    outputs = compare_outputs(original.session, session, original.held_out)
    return max((output.relative_l2 for output in outputs), default=float("inf"))
