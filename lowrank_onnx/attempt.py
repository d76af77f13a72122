"""One attempt of a search: the model of some choices, in a scratch file, against the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config, Speedup
from lowrank_onnx.evaluate import Feeds, Runner, compare_outputs, measure_latency, open_session
from lowrank_onnx.evaluate.feeds import last_feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.scores import MetricJudge
from lowrank_onnx.latency.plan import median_run_ms
from lowrank_onnx.model_io import Model, base_dir, model_bytes, stage_model
from lowrank_onnx.observed import Observed
from lowrank_onnx.passes import Expansion
from lowrank_onnx.progress import Progress
from lowrank_onnx.realise import Realiser
from lowrank_onnx.settle import Settled, settle
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.trust import TRUSTS, PlanJudge
from lowrank_onnx.types import LatencyComparison, MetricComparison, overall_error
from lowrank_onnx.weights import SharedWeight

MOST_IN_MEMORY = 2**28
"""Bytes of a model that is tried without being written to a file."""

Stopwatch: TypeAlias = Callable[[Runner, Runner, Feeds], LatencyComparison]
"""Times the original against another model."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a model is made from once the factors are there, where, and the original to hold against it.

    `model` has the calls of its functions written out, as `expansion` knows. `observed` is None where the original was
    never run; then nothing can be searched for. `metric` is the user's own measure, where there is one.
    """

    model: Model
    groups: tuple[SharedWeight, ...]
    spool: FactorSpool
    directory: Path
    observed: Observed | None
    metric: MetricJudge | None = None
    expansion: Expansion | None = None

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
    with attempt(workshop, choices) as session:
        return _error(workshop.original, session)


def race(workshop: Workshop, stopwatch: Stopwatch, choices: Sequence[Choice]) -> tuple[float, float]:
    """The relative output error and the speedup of the model that these choices make, on the held-out feeds."""
    if _is_original(choices):
        return 0.0, 1.0
    with attempt(workshop, choices) as session:
        original = workshop.original
        error = _error(original, session)
        return error, stopwatch(original.session, session, original.held_out).speedup


def drop_of(workshop: Workshop, choices: Sequence[Choice]) -> tuple[float, MetricComparison]:
    """The relative output error on the held-out feeds, and the task metric, of the model that these choices make."""
    judge = workshop.metric
    if judge is None:
        raise ValueError("a search for a drop needs a metric")
    if _is_original(choices):
        return 0.0, judge(workshop.original.session)
    with attempt(workshop, choices) as session:
        return _error(workshop.original, session), judge(session)


class PlanError:
    """The relative output error of the models that plans make, on some feeds; the original's outputs are kept.

    Parameters
    ----------
    workshop : what the models are made from.
    feeds : what they are run on.
    """

    def __init__(self, workshop: Workshop, feeds: Feeds) -> None:
        self._workshop, self._feeds = workshop, feeds
        self._expected = KeptOutputs(workshop.original.session, feeds, workshop.directory)

    def __call__(self, choices: Sequence[Choice]) -> float:
        """Build and run the model of some choices; infinite where its outputs can't be compared."""
        if _is_original(choices):
            return 0.0
        original = self._workshop.original.session
        with attempt(self._workshop, choices) as session:
            return overall_error(compare_outputs(original, session, self._feeds, kept=self._expected))


PASSES_TO_CHOOSE = 3
"""Passes over the calibration feeds that choosing between plans may take together."""

MOST_FEEDS_TO_CHOOSE = 32

FEWEST_SAMPLES = 12
"""With fewer, effects on the outputs are mostly chance, and a plan can't be judged by the samples that made it."""

TRUST_IN_FEW = 0.5
"""What is left where such samples can't be parted (`lowrank_onnx.folds`), or the plans of folds take too much memory.

With 8 samples, effects measured on them and tails of held-out ones, the error was above that of unweighted factors in
one of 60 cases with this trust, by a third, and in more with others."""


def plan_judge(workshop: Workshop) -> PlanJudge:
    """Judges plans by calibration feeds that no verdict is based on, if possible others than effects were measured on.

    With few samples there is nothing to judge by: effects are trusted a little.
    """
    feeds = workshop.original.calibration
    if feeds.samples < FEWEST_SAMPLES:
        return PlanJudge(_unjudged, (TRUST_IN_FEW,))
    count = max(2, min(MOST_FEEDS_TO_CHOOSE, PASSES_TO_CHOOSE * len(feeds) // len(TRUSTS)))
    return PlanJudge(PlanError(workshop, last_feeds(feeds, count)))


def _unjudged(choices: Sequence[Choice]) -> float:
    del choices
    return math.inf


def _is_original(choices: Sequence[Choice]) -> bool:
    return all(choice.candidate.rank is None for choice in choices)


@contextmanager
def attempt(workshop: Workshop, choices: Sequence[Choice]) -> Iterator[Runner]:
    """A session of the model that these choices make."""
    with open_attempt(workshop, attempt_model(workshop, choices)) as session:
        yield session


def attempt_model(workshop: Workshop, choices: Sequence[Choice]) -> Model:
    """The model that these choices make; factors are read from the workshop's spool each time that it is opened."""
    spool, expansion = workshop.spool, workshop.expansion
    return build_candidate(workshop.model, workshop.groups, choices, spool, measure=False, expansion=expansion).model


@contextmanager
def open_attempt(workshop: Workshop, candidate: Model) -> Iterator[Runner]:
    """A session of such a model."""
    if (start := held_attempt(workshop, candidate)) is not None:
        yield start()
        return
    original = workshop.original
    with stage_model(candidate, workshop.directory / "attempt.onnx") as staged:
        try:
            yield original.open(staged.path)
        finally:
            original.rest()


def held_attempt(workshop: Workshop, candidate: Model, threads: int | None = None) -> Callable[[], Runner] | None:
    """What opens a session of such a model with the factors as they are now, whatever becomes of them; it is in memory.

    Small ones have no file, as to write and remove that takes as long as a few feeds; None for others.

    Parameters
    ----------
    threads : of the session.
    """
    original = workshop.original
    if original.sessions.one_at_a_time or workshop.model.file_bytes > MOST_IN_MEMORY:
        return None
    proto, base = model_bytes(candidate), base_dir(candidate)
    start = partial(open_session, proto, base_dir=base, provider=original.provider, threads=threads)
    return partial(original.sessions.open, start)


def _error(original: Observed, session: Runner) -> float:
    """On the held-out feeds."""
    return overall_error(compare_outputs(original.session, session, original.held_out, kept=original.expected))


def settled_choices(
    workshop: Workshop,
    weights: Sequence[PlannedWeight],
    realiser: Realiser,
    config: Config,
    start: float | None,
    judge_of_plans: PlanJudge | None,
    progress: Progress,
) -> Settled:
    """`settle`, with the models of its attempts built and measured in the workshop."""

    def stopwatch(original: Runner, candidate: Runner, feeds: Feeds) -> LatencyComparison:
        return measure_latency(original, candidate, feeds, seed=config.seed, max_seconds=config.preset.attempt_seconds)

    original_ms = None
    if isinstance(config.budget, Speedup):
        original_ms = median_run_ms(workshop.original.session, next(iter(workshop.original.feeds)))
    return settle(
        weights,
        realiser.curves,
        config,
        partial(error_of, workshop),
        progress,
        race=partial(race, workshop, stopwatch),
        drop_of=partial(drop_of, workshop),
        original_ms=original_ms,
        start=start,
        holds=realiser.holds,
        plan_judge=judge_of_plans,
    )
