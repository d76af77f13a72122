"""A model run piece by piece over all feeds at once: what passes from one piece to the next waits in between.

So all pieces together cost one run, and each can be made when its turn comes: of the compressed model with the factors
that were found until then, of the original as far ahead as there is room for what is wanted of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper

from lowrank_onnx.errors import LowRankError
from lowrank_onnx.evaluate import Session
from lowrank_onnx.in_order import in_order
from lowrank_onnx.passes.dataflow import Dataflow, extract_piece, live_values, nodes_between
from lowrank_onnx.refine.activations import Activations, Side
from lowrank_onnx.types import Array, Feed

LEAST_FEEDS = 2


class PiecesError(LowRankError):
    """A model can't be run in pieces; the message says why."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of the values that wait."""

    memory: int = 2**30
    disk: int = 2**33


class Waiting:
    """Values that wait, of as many feeds as there is room for.

    Parameters
    ----------
    directory : for what doesn't fit into memory.
    bounds : of all values. Where they leave no room for another one, the last feeds are given up.
    feeds : how many there are.
    """

    def __init__(self, directory: Path, bounds: Bounds, feeds: int) -> None:
        self._values = Activations(directory, max_memory=bounds.memory, max_disk=bounds.disk)
        self._feeds = list(range(feeds))

    @property
    def feeds(self) -> tuple[int, ...]:
        """The numbers of the feeds that are still run on."""
        return tuple(self._feeds)

    def put(self, feed: int, side: Side, name: str, value: Any) -> None:
        """Keep a value of a feed, unless that is given up.

        Raises
        ------
        PiecesError : it is no tensor, or leaves room for too few feeds.
        """
        if not isinstance(value, np.ndarray):
            raise PiecesError(f"value {name!r} is no tensor, and can't be kept between the layers")
        while feed in self._feeds and not self._values.put(feed, side, name, value):
            self._values.drop(self._feeds.pop())
            if len(self._feeds) < LEAST_FEEDS:
                raise PiecesError(f"value {name!r} leaves no room for those of {LEAST_FEEDS} feeds: give smaller feeds")

    def get(self, feed: int, side: Side, name: str) -> Array:
        """A value that was kept (`KeyError` for any other)."""
        return self._values.get(feed, side, name)

    def give_up(self, feed: int, side: Side, names: Iterable[str]) -> None:
        """Give up some values."""
        self._values.give_up(feed, side, names)

    def drop(self, feed: int, side: Side, wanted: Iterable[str] = ()) -> None:
        """Give up the values of one side, but for those named."""
        self._values.drop(feed, side, wanted)

    def close(self) -> None:
        """Give up all values."""
        for feed in self._feeds:
            self._values.drop(feed)
        self._feeds.clear()


Receive: TypeAlias = Callable[[int, Mapping[str, Array]], Callable[[], None]]
"""Takes a feed's number, and the values of it that were asked for, in any thread; what it returns is called when the
feed's turn comes."""


def _nothing() -> None:
    """What there is to do for a feed of which nothing was asked."""


@dataclass(frozen=True, slots=True)
class Course:
    """What the two models have in common: the original's nodes in the order in which they run, and the feeds.

    `load` begins with the first feed each time that it is called. `at_once` feeds are run at the same time: threads
    that each have a feed of their own needn't wait for each other at every node.
    """

    flow: Dataflow
    order: tuple[int, ...]
    load: Callable[[], Iterator[Feed]]
    waiting: Waiting
    at_once: int = 1


class Track:
    """One of the two models on its way through the pieces.

    Parameters
    ----------
    course : where the pieces are cut, and the feeds.
    side : which model it is.
    flow : its own nodes. All values that pass a cut are there, by the names that they have in the original.
    start : opens a piece of it.
    """

    def __init__(self, course: Course, side: Side, flow: Dataflow, start: Callable[[onnx.ModelProto], Session]) -> None:
        self._course, self._side, self._flow, self._start = course, side, flow, start
        self._at = 0
        self._begun = False

    def value(self, feed: int, name: str) -> Array:
        """A value that what is still to run reads."""
        return self._course.waiting.get(feed, self._side, name)

    def run_to(self, cut: int, asked: Sequence[str] = (), receive: Receive | None = None) -> None:
        """Run up to the node at `cut` in the order, on all feeds.

        Parameters
        ----------
        asked : values that are there by then, and are made or read after the last cut.
        receive : is given these.

        Raises
        ------
        PiecesError : a value can't pass between pieces, or there is room for too few feeds.
        ModelError : a piece doesn't run.
        """
        here, live = (live_values(self._course.flow, self._course.order, place) for place in (self._at, cut))
        made = [name for name in dict.fromkeys((*live, *asked)) if name not in here]
        nodes, inputs = nodes_between(self._flow, here, made)
        given = tuple(dict.fromkeys((*inputs, *(name for name in asked if name in here))))
        session: Session | None = None

        def run(feed: int, values: dict[str, Any]) -> tuple[int, dict[str, Any], Callable[[], None]]:
            if session is not None:
                values |= session.run({name: values[name] for name in inputs}, made)
            settle = _nothing if receive is None else receive(feed, {name: values[name] for name in asked})
            return feed, {name: values[name] for name in made if name in live}, settle

        def runs() -> Iterator[Callable[[], tuple[int, dict[str, Any], Callable[[], None]]]]:
            nonlocal session
            for feed, values in self._given(given, live):
                if made and session is None:
                    session = self._open(nodes, {name: values[name] for name in inputs}, made)
                yield partial(run, feed, values)

        waiting, at_once = self._course.waiting, self._course.at_once
        ahead = at_once if at_once > 1 else 0
        with ThreadPoolExecutor(at_once, "feeds") as executor:
            for feed, passed, settle in in_order(executor, runs(), ahead):
                settle()
                waiting.drop(feed, self._side, live)
                for name, value in passed.items():
                    waiting.put(feed, self._side, name, value)
        self._at, self._begun = cut, True

    def _given(self, names: Sequence[str], live: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The values that a piece begins with: of the feeds themselves, or what has waited."""
        waiting = self._course.waiting
        if self._begun:
            for feed in waiting.feeds:
                if feed in waiting.feeds:  # not given up for the sake of an earlier one
                    yield feed, {name: self.value(feed, name) for name in names}
            return
        for number, values in enumerate(self._course.load()):
            if number not in waiting.feeds:
                return
            for name in live:
                if name in values:
                    waiting.put(number, self._side, name, values[name])
            if number in waiting.feeds:
                yield number, {name: values[name] for name in names}

    def _open(self, nodes: Sequence[int], inputs: Mapping[str, Array], outputs: Sequence[str]) -> Session:
        typed = [_input(name, value) for name, value in inputs.items()]
        return self._start(extract_piece(self._flow, nodes, typed, outputs))


def _input(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
