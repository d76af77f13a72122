"""The original and the compressed model side by side, run piece by piece over all feeds at once.

Both are the original graph; the compressed one has the product of the factors in place of each weight that was
replaced. What passes from one piece to the next is kept, so that all pieces together cost one run of each model, and a
piece sees the factors as they are when its turn comes. Where the two can't differ yet, only the original runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lowrank_onnx.attempt import Workshop
from lowrank_onnx.errors import LowRankError
from lowrank_onnx.evaluate import Session, open_session
from lowrank_onnx.model_io import base_dir, model_bytes, new_tensor_proto
from lowrank_onnx.model_io.store import Provider
from lowrank_onnx.passes.dataflow import Dataflow, extract_piece, live_values, read_dataflow
from lowrank_onnx.passes.redirect import redirect_weights
from lowrank_onnx.refine.activations import Activations, Side
from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Feed, Site

LEAST_FEEDS = 2


class TwinsError(LowRankError):
    """The two models can't be run in pieces; the message says why."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of the values that pass between pieces."""

    memory: int = 2**30
    disk: int = 2**33


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive nodes in both models; only in the original where the two can't differ, in neither without outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    apart: bool
    sessions: Mapping[Side, Session]


class Twins:
    """Runs both models up to a place in the order of their nodes.

    Parameters
    ----------
    workshop : the original, where it runs, and a directory for values that don't fit into memory.
    flow, order : its nodes in the order in which they run.
    replaced : the weights with factors.
    spool : their factors; read when a piece with one of their sites is about to run.
    feeds : what to run on. The last ones are given up where `bounds` leave no room for them.
    bounds : of the values between pieces.
    """

    def __init__(
        self,
        workshop: Workshop,
        flow: Dataflow,
        order: Sequence[int],
        replaced: Sequence[Replaced],
        spool: FactorSpool,
        feeds: Iterable[Feed],
        bounds: Bounds,
    ) -> None:
        self._model, self._provider = workshop.model, workshop.original.provider
        self._original, self._order = flow, tuple(order)
        self._providers: dict[str, Provider] = {}
        self._compressed = self._redirected(flow, replaced, spool)
        self._changed = {_outer_node(site) for one in replaced for site in one.group.sites}
        self._apart: set[str] = set()
        self._at = 0
        self._later: list[int] = []
        self._values = Activations(workshop.directory, max_memory=bounds.memory, max_disk=bounds.disk)
        self._feeds: list[int] = []
        self._load(feeds)

    @property
    def feeds(self) -> tuple[int, ...]:
        """The numbers of the feeds that are still run on."""
        return tuple(self._feeds)

    def differ(self, value: str) -> bool:
        """Whether a value may have become another one in the compressed model."""
        return value in self._apart

    def value(self, feed: int, side: Side, name: str) -> Array:
        """A value that what is still to run reads."""
        return self._values.get(feed, side if name in self._apart else "original", name)

    def run_to(self, cut: int) -> None:
        """Run both models up to the node at `cut` in the order, on all feeds.

        Raises
        ------
        TwinsError : a value can't pass between pieces, or there is room for too few feeds.
        ModelError : a piece doesn't run.
        """
        self.run_later(cut)
        while self._later:
            self._run_piece(self._later.pop(0))

    def run_later(self, cut: int) -> None:
        """`run_to`, but with the next call: a walk that goes on from a cache runs the same pieces, or none at all."""
        self._later.append(cut)

    def _run_piece(self, cut: int) -> None:
        begin, self._at = self._at, cut
        nodes = self._order[begin:cut]
        if not nodes:
            return
        live = live_values(self._original, self._order, cut)
        made = {name for node in nodes for name in self._original.node(node).output}
        piece = self._open_piece(nodes, [name for name in live if name in made])
        for feed in self.feeds:
            if feed not in self._feeds:
                continue  # given up for the sake of an earlier one
            results = self._run(piece, feed)
            self._values.drop(feed, live)
            for side, values in results.items():
                for name, value in values.items():
                    self._put(feed, side, name, value)
        if piece.apart:
            self._apart.update(piece.outputs)

    def close(self) -> None:
        """Give up all values."""
        for feed in self._feeds:
            self._values.drop(feed)
        self._feeds.clear()

    def _open_piece(self, nodes: Sequence[int], outputs: Sequence[str]) -> _Piece:
        made = {name for node in nodes for name in self._original.node(node).output}
        read = dict.fromkeys(name for node in nodes for name in self._original.varying(node))
        inputs = [name for name in read if name not in made]
        apart = not self._changed.isdisjoint(nodes) or not self._apart.isdisjoint(inputs)
        sessions: dict[Side, Session] = {}
        if outputs:
            sessions["original"] = self._open(self._original, nodes, inputs, outputs)
            if apart:
                sessions["compressed"] = self._open(self._compressed, nodes, inputs, outputs)
        return _Piece(tuple(inputs), tuple(outputs), apart, sessions)

    def _run(self, piece: _Piece, feed: int) -> dict[Side, dict[str, Any]]:
        return {
            side: session.run({name: self.value(feed, side, name) for name in piece.inputs}, piece.outputs)
            for side, session in piece.sessions.items()
        }

    def _redirected(self, flow: Dataflow, replaced: Sequence[Replaced], spool: FactorSpool) -> Dataflow:
        def placeholder(position: int, name: str) -> onnx.TensorProto:
            one = replaced[position]
            self._providers[name] = partial(one.product, spool)
            return new_tensor_proto(name, one.weight.dtype, one.weight.shape, name)

        return read_dataflow(redirect_weights(flow.skeleton, [one.group.sites for one in replaced], placeholder))

    def _load(self, feeds: Iterable[Feed]) -> None:
        wanted = live_values(self._original, self._order, 0)
        for number, feed in enumerate(feeds):
            self._feeds.append(number)
            for name in wanted:
                if name in feed:
                    self._put(number, "original", name, feed[name])
                if number not in self._feeds:
                    return

    def _put(self, feed: int, side: Side, name: str, value: Array) -> None:
        """Keep a value, at the price of the last feeds where there is no room for it."""
        if not isinstance(value, np.ndarray):
            raise TwinsError(f"value {name!r} is no tensor, and can't be kept between the layers")
        while feed in self._feeds and not self._values.put(feed, side, name, value):
            self._values.drop(self._feeds.pop())
            if len(self._feeds) < LEAST_FEEDS:
                raise TwinsError(f"value {name!r} leaves no room for those of {LEAST_FEEDS} feeds: give smaller feeds")

    def _open(self, flow: Dataflow, nodes: Sequence[int], inputs: Iterable[str], outputs: Iterable[str]) -> Session:
        typed = [_input(name, self.value(self._feeds[0], "original", name)) for name in inputs]
        piece = self._model.with_rewrite(extract_piece(flow, nodes, typed, outputs), self._providers)
        return open_session(model_bytes(piece), base_dir=base_dir(self._model), provider=self._provider)


def _outer_node(site: Site) -> int:
    """The node of the main graph that is, or holds, a site."""
    return site.scope[0][0] if site.scope else site.node_index


def _input(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
