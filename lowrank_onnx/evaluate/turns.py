"""Sessions side by side, or, where memory is too short for two models, one at a time.

Of sessions that take turns only one holds its model in memory. To run another one closes it, and loads that other's
model again. So whoever runs two of them runs each for as long as it can: all feeds (`pair_outputs`), or a block of
measurements (`lowrank_onnx.evaluate.latency`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowrank_onnx.errors import ModelError
from lowrank_onnx.evaluate.memory import available_memory, return_freed_memory
from lowrank_onnx.evaluate.output_file import OutputFile
from lowrank_onnx.evaluate.session import Runner, Session
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Feed

MEMORY_OF_FILE = 2.0
"""Bytes that a session takes for each byte of its model's files, rounded up. Measured with onnxruntime 1.31 on the CPU
for each of two sessions of one model, run once: MatMuls with external data 1.0 to 1.1, inside the file 1.8 to 1.9 (the
file is parsed in memory), 3x3 convolutions 1.7 (packed anew)."""

MOST_KEPT = 2**32
"""Bytes of outputs that are kept on disk before the other model gets its turn."""


class OpenModel(Runner, Protocol):
    """A model that can be run, and what is known of where it runs; `Session` explains the attributes."""

    @property
    def overridable(self) -> tuple[InputSpec, ...]:
        """The initializers that a feed may override."""
        ...

    @property
    def nodes(self) -> dict[str, int] | None:
        """How many nodes each provider runs."""
        ...

    @property
    def providers_used(self) -> tuple[str, ...]:
        """The providers that really run nodes."""
        ...


class Sessions:
    """Opens the sessions of one run of the program.

    Parameters
    ----------
    one_at_a_time : whether a session is closed when another one is opened or run.
    note : what a reader of the results has to know of that.
    directory : where outputs are kept while the other model runs; None takes the system's temporary directory.
    logits : the outputs that are compared as logits; every session that is opened here says so.
    """

    def __init__(
        self,
        *,
        one_at_a_time: bool = False,
        note: str = "",
        directory: Path | None = None,
        logits: Iterable[str] = (),
    ) -> None:
        self.one_at_a_time = one_at_a_time
        self.note = note
        self.directory = directory
        self.logits = frozenset(logits)
        self._open: tuple[TurnSession, Session] | None = None

    def open(self, start: Callable[[], Session]) -> OpenModel:
        """Open a session; `start` does it, again each time that it is this one's turn."""
        if self.one_at_a_time:
            return TurnSession(self, start)
        session = start()
        session.logits = self.logits
        return session

    def rest(self) -> None:
        """Close the session whose turn it is, if sessions take turns. It opens again when it is run."""
        if self._open is not None:
            self._open = None
            return_freed_memory()

    def admit(self, session: TurnSession) -> Session:
        """Make it a session's turn."""
        if self._open is None or self._open[0] is not session:
            self.rest()
            self._open = (session, session.start())
        return self._open[1]


class TurnSession:
    """A session that is open only while it is its turn. Opened by `Sessions.open`; attributes as in `Session`."""

    __slots__ = ("inputs", "logits", "nodes", "outputs", "overridable", "providers_used", "start", "turns")

    def __init__(self, turns: Sessions, start: Callable[[], Session]) -> None:
        self.turns, self.start = turns, start
        session = turns.admit(self)
        self.inputs, self.outputs, self.overridable = session.inputs, session.outputs, session.overridable
        self.nodes, self.providers_used = session.nodes, session.providers_used
        self.logits = turns.logits

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model once, after opening it where it isn't its turn; see `Session.run`."""
        return self.turns.admit(self).run(feed, outputs)


def plan_sessions(
    asked: bool | None,
    file_bytes: int,
    provider: Provider,
    directory: Path | None = None,
    logits: Iterable[str] = (),
) -> Sessions:
    """Decide whether sessions take turns.

    Parameters
    ----------
    asked : True and False decide it. None: they do where the models wouldn't fit into the memory that is available,
        as far as the system tells (`available_memory`) and the provider keeps weights in main memory.
    file_bytes : of the files of the two models together.
    provider : what runs them.
    directory, logits : as in `Sessions`.
    """
    if asked is None:
        room = available_memory() if provider.name.lower().startswith("cpu") else None
        short = room is not None and MEMORY_OF_FILE * file_bytes > room
        reason = "memory is short for two"
    else:
        short, reason = asked, "--one-session"
    note = (
        f"the models ran one at a time ({reason}): latency is from alternating blocks of runs, with models loaded "
        "in between, not from interleaved pairs"
    )
    return Sessions(one_at_a_time=short, note=note if short else "", directory=directory, logits=logits)


def take_turns(original: Runner, candidate: Runner) -> Sessions | None:
    """What opens two sessions by turns, or None where both stay open."""
    if isinstance(original, TurnSession) and isinstance(candidate, TurnSession):
        return original.turns if original.turns is candidate.turns else None
    return None


def pair_outputs(
    original: Runner, candidate: Runner, feeds: Iterable[Feed], outputs: Sequence[str] | None = None
) -> Iterator[tuple[Feed, dict[str, Any], dict[str, Any]]]:
    """Each feed with both models' outputs; one feed's outputs are in memory at a time.

    Sessions that take turns do so as seldom as `MOST_KEPT` bytes on disk allow.

    Parameters
    ----------
    original, candidate : the models.
    feeds : what to run them on; iterated twice at once where they take turns.
    outputs : the outputs to return; None returns all.

    Raises
    ------
    ModelError : one of them can't run on a feed; the message says which.
    OutputError : there is no room for outputs on disk.
    """
    turns = take_turns(original, candidate)
    if turns is None:
        for index, feed in enumerate(feeds):
            expected = run_as("original", original, feed, index, outputs)
            yield feed, expected, run_as("candidate", candidate, feed, index, outputs)
        return
    ahead, behind = enumerate(feeds), enumerate(feeds)
    while True:
        with OutputFile(turns.directory) as kept:
            count = 0
            for index, feed in ahead:
                kept.add(run_as("original", original, feed, index, outputs))
                count += 1
                if kept.nbytes >= MOST_KEPT:
                    break
            if count == 0:
                return
            for (index, feed), expected in zip(itertools.islice(behind, count), kept, strict=True):
                yield feed, expected, run_as("candidate", candidate, feed, index, outputs)


def run_as(role: str, model: Runner, feed: Feed, index: int, outputs: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a model once; where it can't (`ModelError`), say which of the two it is, and on which feed."""
    try:
        return model.run(feed, outputs)
    except ModelError as error:
        raise ModelError(f"the {role} on feed {index}: {error}") from error
