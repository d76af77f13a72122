"""Small feeds run together: with one sample each, every piece of the model would be opened for next to no work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowrank_onnx.errors import ModelError
from lowrank_onnx.evaluate import Feeds
from lowrank_onnx.evaluate.feeds import DEFAULT_BATCH_SIZE
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.types import Feed

MOST_BYTES = 2**20
"""Of the inputs of feeds that are run together: what a model makes of them may be a thousand times as much."""

SAME = 1e-3
"""Relative difference of outputs that is rounding: float16 models, and products of other shapes, round otherwise."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Feeds that are run as one, by number; all of them validate, or none does."""

    members: tuple[int, ...]
    validates: bool


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """All feeds, in the order in which their batches are complete. Can be iterated any number of times."""

    feeds: Feeds
    batches: tuple[Batch, ...]

    def load(self) -> Iterator[Feed]:
        """The batches, one after the other; of the feeds only what waits for others is in memory."""
        place = {member: batch for batch in self.batches for member in batch.members}
        waiting: dict[Batch, list[Feed]] = {}
        for number, feed in enumerate(self.feeds):
            batch = place[number]
            waiting.setdefault(batch, []).append(feed)
            if number == batch.members[-1]:
                yield _together(waiting.pop(batch))


def batch_feeds(feeds: Feeds, validates: Callable[[int], bool], session: Runner) -> Batches:
    """Put small feeds of the same shape together, where a run on one of the batches shows that this changes nothing.

    Parameters
    ----------
    feeds : to run on.
    validates : whether a feed of that number is for another purpose than those where it isn't.
    session : the model.
    """
    single = tuple(Batch((number,), validates(number)) for number in range(len(feeds)))
    apart = Batches(feeds, single)
    if not all(spec.is_tensor and spec.shape and not isinstance(spec.shape[0], int) for spec in session.inputs):
        return apart
    together = replace(apart, batches=_plan(feeds, single))
    first = next((batch for batch in together.batches if len(batch.members) > 1), None)
    return apart if first is None or not _is_the_same(together, first, session) else together


def _plan(feeds: Feeds, single: Sequence[Batch]) -> tuple[Batch, ...]:
    """As many feeds in a batch as validate, if it has room: so batches are of one size, and stand for as many rows."""
    kinds: list[tuple[Hashable, int, int]] = [_kind(feed) for feed in feeds]
    validating = Counter(kind for (kind, _, _), batch in zip(kinds, single, strict=True) if batch.validates)
    open_ones: dict[tuple[Hashable, bool], list[int]] = {}
    done: list[Batch] = []

    def close(key: tuple[Hashable, bool]) -> None:
        done.append(Batch(tuple(open_ones.pop(key)), key[1]))

    for number, ((kind, samples, size), batch) in enumerate(zip(kinds, single, strict=True)):
        most = min(DEFAULT_BATCH_SIZE // samples, MOST_BYTES // size) if samples and size else 1
        key = (kind, batch.validates)
        open_ones.setdefault(key, []).append(number)
        if len(open_ones[key]) >= min(most, validating[kind] or most):
            close(key)
    for key in list(open_ones):
        close(key)
    return tuple(sorted(done, key=lambda batch: batch.members[-1]))


def _kind(feed: Feed) -> tuple[Hashable, int, int]:
    """What feeds that can be run together have in common, how many samples they have, and bytes."""
    samples = {np.shape(value)[:1] for value in feed.values()}
    size = sum(np.asarray(value).nbytes for value in feed.values())
    count = samples.pop()[0] if len(samples) == 1 and () not in samples else 0
    described = tuple((name, np.asarray(value).dtype.str, np.shape(value)) for name, value in sorted(feed.items()))
    return described, count, size


def _together(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _is_the_same(batches: Batches, batch: Batch, session: Runner) -> bool:
    """Whether the model's outputs for a batch are those for its feeds, one after the other."""
    wanted = set(batch.members)
    feeds = [feed for number, feed in enumerate(batches.feeds) if number in wanted]
    try:
        whole = session.run(_together(feeds))
    except ModelError:  # a size that the model has fixed inside
        return False
    parts = [session.run(feed) for feed in feeds]
    return all(_agree(whole[name], [part[name] for part in parts]) for name in session.outputs)


def _agree(whole: Any, parts: Sequence[Any]) -> bool:
    if not all(isinstance(value, np.ndarray) and value.ndim for value in (whole, *parts)):
        return False
    if any(part.shape[1:] != whole.shape[1:] for part in parts) or len(whole) != sum(map(len, parts)):
        return False
    expected = np.concatenate(parts)
    if whole.dtype.kind in "OUST":
        return bool((whole == expected).all())
    z, y = whole.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(z)):
        return False
    return bool(np.linalg.norm((z - y)[finite]) <= SAME * np.linalg.norm(y[finite]))
