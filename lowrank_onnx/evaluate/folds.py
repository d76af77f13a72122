"""Few samples in parts, so that what some of them teach can be held against the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lowrank_onnx.evaluate.feeds import Feeds, every_nth, load_feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Feed


def fold_samples(feeds: Feeds, inputs: Sequence[InputSpec], count: int) -> tuple[Feeds, ...]:
    """The feeds in `count` parts of about equal size; where there are fewer feeds, their samples.

    Parameters
    ----------
    feeds : where they are fewer than the parts, all of them are loaded.
    inputs : the model's; a feed can be cut where all of them leave the size of axis 0 open and are as long there.

    Returns
    -------
    The parts; none where that leaves fewer pieces than parts.
    """
    if len(feeds) >= count:
        return tuple(every_nth(feeds, part, count) for part in range(count))
    pieces = [piece for feed in feeds for piece in _cut(feed, inputs)]
    if len(pieces) < count:
        return ()
    return tuple(load_feeds(pieces[part::count], inputs) for part in range(count))


def single_samples(feeds: Feeds, inputs: Sequence[InputSpec], count: int) -> tuple[Feed, ...]:
    """At least `count` samples where there are so many, evenly from the first feeds, each alone where feeds can be cut.

    A feed that can't be cut counts as all of its samples.
    """
    found: list[Feed] = []
    in_a_feed = max(1, feeds.samples // len(feeds))
    wanted = -(-count // min(count, len(feeds)))
    samples = 0
    for feed in feeds:
        pieces = list(_cut(feed, inputs))
        taken = pieces[:: max(1, len(pieces) // wanted)][:wanted]
        found += taken
        samples += len(taken) if len(pieces) > 1 else in_a_feed
        if samples >= count:
            break
    return tuple(found)


def _cut(feed: Feed, inputs: Sequence[InputSpec]) -> Iterator[Feed]:
    """The samples of a feed, or the feed where it is not known how they lie."""
    sizes = {int(np.shape(feed[spec.name])[0]) for spec in inputs if spec.name in feed and np.ndim(feed[spec.name])}
    if len(sizes) != 1 or not all(
        spec.is_tensor and spec.shape and not isinstance(spec.shape[0], int) for spec in inputs
    ):
        yield feed
        return
    for index in range(sizes.pop()):
        yield {name: value[index : index + 1] for name, value in feed.items()}
