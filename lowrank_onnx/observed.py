"""The original in onnxruntime: its feeds, what is held out of them, and where its sites apply their weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import onnx

from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate import Feeds, Runner, Session, load_feeds, open_session, split_feeds, synthetic_feeds
from lowrank_onnx.evaluate.feed_arrays import shapes_of
from lowrank_onnx.evaluate.feeds import last_feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.logits import check_values
from lowrank_onnx.evaluate.turns import OpenModel, Sessions
from lowrank_onnx.model_io import Model, base_dir, model_bytes
from lowrank_onnx.observe import Observation, observe_positions
from lowrank_onnx.passes.integer_limits import integer_limits
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Feed, Site

FeedSource: TypeAlias = "str | PathLike[str] | Iterable[Feed] | Feeds"


@dataclass(frozen=True, slots=True)
class Observed:
    """A model that runs, and what was seen of it.

    Attributes
    ----------
    model, provider : what is instrumented, and where it runs.
    session : the model as it came.
    feeds : all feeds.
    calibration : the feeds to learn from.
    held_out : the feeds to judge by; the same as `calibration` where there are too few to split.
    expected : the outputs of `session` on them.
    sites : what each site of the main graph saw, by name.
    pass_seconds : about what one pass of the original over `calibration` takes, by runs on one or two feeds.
    sessions : opens all models that are held against the original: beside it, or in turns with it.
    """

    model: Model
    provider: Provider | str
    session: OpenModel
    feeds: Feeds
    calibration: Feeds
    held_out: Feeds
    expected: KeptOutputs
    sites: Mapping[str, Observation]
    pass_seconds: float
    sessions: Sessions

    @property
    def positions(self) -> dict[str, int]:
        """How often each site applies its weight in one run."""
        return {name: seen.positions for name, seen in self.sites.items()}

    def run(self, instrumented: onnx.ModelProto) -> OpenModel:
        """Open a session for an instrumented copy of the model's skeleton."""
        return self.sessions.open(partial(open_instrumented, self.model, instrumented, self.provider))

    def open(self, path: Path) -> OpenModel:
        """Open a session for another model."""
        return self.sessions.open(partial(open_session, path, provider=self.provider))

    def rest(self) -> None:
        """Free the memory that a model takes, where sessions take turns."""
        self.sessions.rest()


def open_model(model: Model, provider: Provider | str) -> Session:
    """A session for a loaded model: from its file where it has one, else from memory."""
    if model.path is not None:
        return open_session(model.path, provider=provider)
    return open_session(model_bytes(model), base_dir=base_dir(model), provider=provider)


def open_instrumented(model: Model, instrumented: onnx.ModelProto, provider: Provider | str) -> Session:
    """A session for a changed copy of the model's skeleton, with the model's weights."""
    proto = model_bytes(model.with_rewrite(instrumented, {}))
    inputs = {given.name for given in instrumented.graph.input}
    overridden = not inputs.isdisjoint(tensor.name for tensor in instrumented.graph.initializer)
    return open_session(proto, base_dir=base_dir(model), provider=provider, overridden=overridden)


def find_feeds(model: Model, session: Runner, source: FeedSource | None, seed: int) -> Feeds:
    """The feeds given, or synthetic ones that respect the sizes of the tables that integer inputs index."""
    if source is not None:
        return load_feeds(source, session.inputs)
    return synthetic_feeds(session.inputs, seed=seed, integer_limits=integer_limits(model.skeleton))


def observe(
    model: Model,
    sites: Sequence[Site],
    source: FeedSource | None,
    *,
    provider: Provider | str,
    seed: int,
    original: Model | None = None,
    sessions: Sessions | None = None,
) -> Observed:
    """Run the model on its first feed, and count the positions of its sites.

    Parameters
    ----------
    model, sites : what to run, and which sites to look at.
    source : of the feeds; None makes synthetic ones, from `seed`.
    provider : what runs the model.
    original : the model that results are held to; None where it is `model` itself.
    sessions : opens it; None keeps sessions open side by side.

    Raises
    ------
    UsageError
        The feeds don't fit, the model doesn't run on synthetic ones, or an output that was named as logits is none.
    ModelError
        The model doesn't run.
    """
    sessions = Sessions() if sessions is None else sessions
    session = sessions.open(partial(open_model, model if original is None else original, provider))
    feeds = find_feeds(model, session, source, seed)

    def instrument(proto: onnx.ModelProto) -> OpenModel:
        return sessions.open(partial(open_instrumented, model, proto, provider))

    try:
        run_seconds = _time_run(session, feeds)
        seen = observe_positions(model.skeleton, sites, instrument, feeds)
    except ModelError as error:
        if not feeds.synthetic:
            raise
        raise UsageError(
            f"the model doesn't run on {feeds.description}: give real ones with --calib ({error})"
        ) from error
    calibration, held_out = (feeds, feeds) if feeds.synthetic else split_feeds(feeds)
    return Observed(
        model,
        provider,
        session,
        feeds,
        calibration,
        held_out,
        KeptOutputs(session, held_out, sessions.directory),
        seen,
        run_seconds * len(calibration),
        sessions,
    )


def _time_run(session: Runner, feeds: Feeds) -> float:
    """Seconds of one run, from the shorter of two on each of two feeds; on one where their shapes are the same."""
    shortest: dict[tuple[tuple[int, ...], ...], float] = {}
    for feed in last_feeds(feeds, 2):
        shapes = shapes_of(feed)
        if shapes not in shortest:
            shortest[shapes] = min(_time(session, feed) for _ in range(2))
    return sum(shortest.values()) / len(shortest)


def _time(session: Runner, feed: Feed) -> float:
    started = time.perf_counter()
    values = session.run(feed)
    seconds = time.perf_counter() - started
    for name in session.logits:  # of which the model may not have told enough
        check_values(name, values[name])
    return seconds
