"""Feeds: the input sets that a model is run on, from files, directories or Python.

Sources of `load_feeds`:

- an ``.npz`` file: arrays named as the model's inputs. Arrays of the input's rank are cut along axis 0 into batches:
  of the model's own batch size where its first dim is fixed (samples that don't fill the last one are dropped), else
  of `batch_size` (the last one may be smaller). Arrays with one more axis hold one complete feed per entry of axis 0.
  A 0-d array for a scalar input goes into every feed. Arrays that are no inputs (labels) are left out;
- a directory of ``.npz`` files: each as above, in the order of their names, read when their turn comes;
- a directory of ONNX test data: ``test_data_set_*/input_*.pb``, or one such folder;
- in Python, any iterable of dicts, one complete feed each. A sequence is kept; any other iterable is read once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feed_arrays import check_feed, convert_feed
from lowrank_onnx.evaluate.npz_feeds import plan_npz
from lowrank_onnx.evaluate.test_data import find_test_data_sets, load_test_data
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Feed

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class FeedGroup:
    """Feeds that are loaded together: how many, and how."""

    count: int
    load: Callable[[], Iterator[Feed]]


@dataclass(frozen=True, slots=True)
class Feeds:
    """Feeds to run a model on. Can be iterated any number of times, with the same result.

    Attributes
    ----------
    description : what they are, for a report: "16 feeds (512 samples) from calib.npz".
    synthetic : True where they are made from the model's signature alone.
    samples : independent samples in all feeds together.
    groups : how they are loaded.
    """

    description: str
    synthetic: bool
    samples: int
    groups: tuple[FeedGroup, ...] = field(repr=False)

    def __len__(self) -> int:
        return sum(group.count for group in self.groups)

    def __iter__(self) -> Iterator[Feed]:
        for group in self.groups:
            yield from group.load()


HELD_OUT_EVERY = 4
"""One feed in so many is held out from calibration."""


def split_feeds(feeds: Feeds, every: int = HELD_OUT_EVERY) -> tuple[Feeds, Feeds]:
    """Feeds to learn from, and one in `every` held out to judge by; both are all of them where there are fewer.

    Taking every fourth rather than the last ones keeps both parts alike where the samples are in some order.
    """
    count = len(feeds)
    held = count // every
    if held == 0:
        return feeds, feeds

    def is_held(index: int) -> bool:
        return is_held_out(index, every)

    return (
        _part(feeds, count - held, f"{count - held} of {feeds.description}", lambda index: not is_held(index)),
        _part(feeds, held, f"{held} held-out of {feeds.description}", is_held),
    )


def is_held_out(index: int, every: int = HELD_OUT_EVERY) -> bool:
    """Whether `split_feeds` holds out the feed of that number."""
    return index % every == every - 1


def last_feeds(feeds: Feeds, count: int) -> Feeds:
    """`count` of the feeds, counted from the last one and evenly spread over the others; all where there are no more.

    What is measured on the first feeds can so be judged on others, as far as there are any.
    """
    if count >= len(feeds):
        return feeds
    step = len(feeds) // count
    wanted = frozenset(len(feeds) - 1 - step * number for number in range(count))
    return _part(feeds, count, f"{count} of {feeds.description}", wanted.__contains__)


def every_nth(feeds: Feeds, start: int, step: int) -> Feeds:
    """The feeds whose numbers are `start`, `start + step` and so on."""
    count = len(range(start, len(feeds), step))
    return _part(feeds, count, f"{count} of {feeds.description}", lambda index: index % step == start)


def _part(feeds: Feeds, count: int, description: str, wanted: Callable[[int], bool]) -> Feeds:
    def load() -> Iterator[Feed]:
        return (feed for index, feed in enumerate(feeds) if wanted(index))

    # The last feed of a file may be smaller than the others: counted as a share, the samples are right to that feed.
    samples = round(feeds.samples * count / len(feeds))
    return Feeds(description, feeds.synthetic, samples, (FeedGroup(count, load),))


def load_feeds(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Feeds,
    inputs: Sequence[InputSpec],
    *,
    batch_size: int | None = None,
) -> Feeds:
    """Load feeds for a model; the module's docstring lists the sources.

    Parameters
    ----------
    source : a path, an iterable of dicts, or `Feeds` (returned as they are).
    inputs : the model's inputs, from `Session.inputs`.
    batch_size : samples of one feed, where the model leaves that open; None takes 32.

    Raises
    ------
    UsageError : whatever makes the source unusable. Names, shapes and dtypes are checked here; values (NaN, infinity)
        when a feed is loaded.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size}: expected at least 1")
    if isinstance(source, Feeds):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _load_path(Path(source), inputs, batch_size or DEFAULT_BATCH_SIZE)
    return _load_iterable(source, inputs)


def _load_path(path: Path, inputs: Sequence[InputSpec], batch_size: int) -> Feeds:
    if path.is_dir():
        npz_files = sorted(path.glob("*.npz"))
        if npz_files:
            return _load_npz_files(npz_files, path.name, inputs, batch_size, keep=False)
        data_sets = find_test_data_sets(path)
        if data_sets:
            return _load_test_data_sets(data_sets, path, inputs)
        raise UsageError(f"{path}: no .npz files and no test_data_set_*/input_0.pb in this directory")
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory; give an .npz file or a directory of feeds")
    return _load_npz_files([path], path.name, inputs, batch_size, keep=True)


def _load_npz_files(
    paths: Sequence[Path], name: str, inputs: Sequence[InputSpec], batch_size: int, *, keep: bool
) -> Feeds:
    plans = [plan_npz(path, inputs, batch_size=batch_size) for path in paths]
    # One file stays in memory, because every stage iterates over it again; of a directory only the file in turn does.
    groups = tuple(
        FeedGroup(plan.count, functools.partial(_iterate, functools.cache(plan.load)) if keep else plan.iterate)
        for plan in plans
    )
    ignored = sorted({array for plan in plans for array in plan.ignored})
    samples = sum(plan.samples for plan in plans)
    return Feeds(
        description=_describe(sum(plan.count for plan in plans), samples, name)
        + (f"; not inputs, left out: {', '.join(ignored)}" if ignored else ""),
        synthetic=False,
        samples=samples,
        groups=groups,
    )


def _iterate(load: Callable[[], Sequence[Feed]]) -> Iterator[Feed]:
    return iter(load())


def _load_test_data_sets(folders: Sequence[Path], path: Path, inputs: Sequence[InputSpec]) -> Feeds:
    def load(folder: Path) -> Iterator[Feed]:
        yield convert_feed(str(folder), inputs, load_test_data(folder, inputs))

    samples = 0
    for folder in folders:
        feed = load_test_data(folder, inputs)
        check_feed(str(folder), inputs, feed)
        samples += _count_samples(inputs, feed)
    groups = tuple(FeedGroup(1, functools.partial(load, folder)) for folder in folders)
    return Feeds(_describe(len(folders), samples, path.name), synthetic=False, samples=samples, groups=groups)


def _load_iterable(source: Iterable[Mapping[str, Any]], inputs: Sequence[InputSpec]) -> Feeds:
    if isinstance(source, Mapping):
        raise UsageError("feeds: got one dict, expected an iterable of dicts: wrap it in a list")
    if not isinstance(source, Iterable):
        raise UsageError(f"feeds: got {type(source).__name__}, expected a path or an iterable of dicts")
    kept: Sequence[Mapping[str, Any]] = source if isinstance(source, Sequence) else list(source)
    if not kept:
        raise UsageError("feeds: the iterable gave no feed: give at least one dict of input name -> array")
    samples = 0
    for index, feed in enumerate(kept):
        check_feed(f"feed {index}", inputs, feed)
        samples += _count_samples(inputs, feed)

    def load() -> Iterator[Feed]:
        for index, feed in enumerate(kept):
            yield convert_feed(f"feed {index}", inputs, feed)

    return Feeds(_describe(len(kept), samples, "Python"), False, samples, (FeedGroup(len(kept), load),))


def _count_samples(inputs: Sequence[InputSpec], feed: Mapping[str, Any]) -> int:
    """Entries of axis 0 of the first tensor input that has axes: for a complete feed, nothing says more."""
    for spec in inputs:
        if spec.is_tensor and spec.shape and spec.name in feed:
            return int(np.shape(feed[spec.name])[0])
    return 1


def _describe(feeds: int, samples: int, name: str) -> str:
    return f"{feeds} feed{'' if feeds == 1 else 's'} ({samples} sample{'' if samples == 1 else 's'}) from {name}"
