"""What a site costs on this machine: its node alone, dense and in a form at a few ranks, timed in the real provider.

The models of one node (`lowrank_onnx.latency.site_model`) are timed in turns (`lowrank_onnx.latency.timing`).

A time holds what one call of a session costs beside the node, the same for dense and for every rank: differences
between them are the node's own, and ratios are nearer to 1 than they would be inside a larger model. On a provider with
memory of its own it holds the transfers of input and output too.

Equal nodes on equal shapes are measured once, in this process and, with a directory, in later ones: an entry's name is
a digest of the node, the shapes, the ranks and `machine_key`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnx

from lowrank_onnx.candidates import PlannedWeight, useful_ranks
from lowrank_onnx.errors import ModelError, OutputError, UsageError
from lowrank_onnx.evaluate.session import Runner, open_session
from lowrank_onnx.evaluate.stopwatch import Clock
from lowrank_onnx.forms import Form
from lowrank_onnx.latency.curve import LatencyCurve, read_curve, write_curve
from lowrank_onnx.latency.machine import machine_key
from lowrank_onnx.latency.site_model import SiteModel, at_rank, build_bundle_model, draw_input, with_values
from lowrank_onnx.latency.timing import TimedSession, curve_of, fewest_ns, measure_rounds, warm_up
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Site

__all__ = ["LatencyCurve", "LatencyTable", "Opener", "Unmeasured", "machine_key"]

Opener: TypeAlias = Callable[[bytes], Runner]
"""Opens a session for a serialized model."""

_FORMAT = 1
"""Part of every key: raise it when a change here makes times mean something else."""

_LARGEST_PROTO = 2**31 - 2**16
"""Bytes of a serialized protobuf message, less what is around the weights."""

_MOST_RANKS = 5
_FEWEST_RANKS = 2


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """There is no curve for a site; `reason` says why."""

    reason: str


class LatencyTable:
    """Curves of sites, measured when asked for and remembered.

    Parameters
    ----------
    directory : where entries are kept; it is made if need be. None keeps them in this process only.
    provider : the onnxruntime execution provider, as for `open_session`.
    threads : threads of one operator; None takes onnxruntime's choice.
    seconds_per_site : time for the runs of one curve. A node so slow that this doesn't do for 6 passes is measured at
        fewer ranks, and at 2 of them in 6 passes however long that takes.
    memory_bytes : weights that may be in sessions at once; a larger weight is measured at fewer ranks, or not at all.
    open_model : opens a session for a serialized model; None opens it on `provider` with `threads`.
    clock : nanoseconds; `time.perf_counter_ns` but in tests.

    Raises
    ------
    UsageError : an argument is out of its range.
    OutputError : the directory can't be made or written to.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        provider: Provider | str,
        threads: int | None = None,
        seconds_per_site: float = 2.0,
        memory_bytes: int = 2**30,
        open_model: Opener | None = None,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        if not 0.0 < seconds_per_site < math.inf:
            raise UsageError(f"{seconds_per_site:g} s per site: expected some time, e.g. 2")
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads: expected at least 1, or None for onnxruntime's choice")
        if directory is not None:
            _make_directory(directory)
        self._directory = directory
        self._seconds = seconds_per_site
        self._memory_bytes = memory_bytes
        self._machine = machine_key(provider, threads)
        self._open: Opener = open_model or partial(open_session, provider=provider, threads=threads)
        self._clock = clock
        self._known: dict[str, LatencyCurve | Unmeasured] = {}

    def curve(
        self,
        skeleton: onnx.ModelProto,
        site: Site,
        form: Form,
        input_shape: tuple[int, ...],
        partners: Sequence[Site] = (),
    ) -> LatencyCurve | Unmeasured:
        """How long a site takes, dense and in a form at ranks: known, read or measured.

        Parameters
        ----------
        skeleton : the model in which the site was found, with or without its weights.
        site : any site of it, in a subgraph too.
        form : one of the site's.
        input_shape : of the activation that the site reads.
        partners : the other sites that it is written together with, where the form asks for that: timed as one.

        Returns
        -------
        The curve; or, where there can be none (the provider can't run the node on its own, no rank is worth
        considering, it would need too much memory), the reason. A reason is never kept on disk.

        Raises
        ------
        ValueError : the site isn't in this model.
        UsageError : the provider isn't there.
        OutputError : an entry can't be written.
        """
        model = build_bundle_model(skeleton, (site, *partners), input_shape)
        weight = PlannedWeight(site.name, site.shape, (form,), None)
        ranks = _grid(useful_ranks(weight, form, None), _MOST_RANKS)
        key = self._key(model, form, ranks)
        if key not in self._known:
            self._known[key] = self._read(key, ranks) or self._measure(model, form, ranks, key)
        return self._known[key]

    def _key(self, model: SiteModel, form: Form, ranks: Sequence[int]) -> str:
        facts = [_FORMAT, self._machine, self._seconds, self._memory_bytes, form.name, list(ranks)]
        return hashlib.sha256(json.dumps(facts).encode() + b"\0" + model.key()).hexdigest()

    def _read(self, key: str, ranks: Sequence[int]) -> LatencyCurve | None:
        curve = None if self._directory is None else read_curve(self._directory / f"{key}.json", key)
        return curve if curve is not None and set(curve.ranks) <= set(ranks) else None

    def _measure(self, model: SiteModel, form: Form, ranks: Sequence[int], key: str) -> LatencyCurve | Unmeasured:
        problem = _problem(model, ranks)
        if problem is not None:
            return Unmeasured(problem)
        held = _grid_in_memory(model, form, ranks, self._memory_bytes)
        if held is None:
            return Unmeasured(
                f"its weight and bias have {_stored_bytes(model)} bytes: timing it dense and at ranks would take more "
                f"than {self._memory_bytes} bytes of memory"
            )
        try:
            curve = self._time(model, form, held, seed=int(key[:16], 16))
        except ModelError as error:
            return Unmeasured(f"the node can't be timed on its own: {error}")
        if self._directory is not None:
            write_curve(
                self._directory / f"{key}.json",
                key,
                curve,
                note=f"{model.site.op_type} as {form.name}; {self._machine}",
            )
        return curve

    def _time(self, model: SiteModel, form: Form, ranks: Sequence[int], seed: int) -> LatencyCurve:
        feed = draw_input(model)
        session = self._open(with_values(model.proto))
        started = self._clock()
        dense = warm_up(session, feed, self._clock)
        chosen = _grid(ranks, _affordable_ranks(dense, self._seconds))
        timed = [dense, *(warm_up(self._open_rank(model, form, rank), feed, self._clock) for rank in chosen)]
        deadline = started + round(self._seconds * 1e9)
        rounds = measure_rounds(timed, feed, deadline, seed, self._clock)
        return curve_of(chosen, rounds)

    def _open_rank(self, model: SiteModel, form: Form, rank: int) -> Runner:
        try:
            return self._open(with_values(at_rank(model, form, rank)))
        except UsageError as error:  # the provider runs the dense node, but leaves some of the new ones to another
            raise ModelError(f"at rank {rank}: {error}") from error


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cache {directory}: {error.strerror}; give a directory that can be written") from error
    if not os.access(directory, os.W_OK):
        raise OutputError(f"cache {directory}: it can't be written to; give a directory that can be written")


def _grid(ranks: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of ascending `ranks`, evenly spread, the smallest and the largest among them."""
    if len(ranks) <= count:
        return tuple(ranks)
    return tuple(ranks[round(step * (len(ranks) - 1) / (count - 1))] for step in range(count))


def _problem(model: SiteModel, ranks: Sequence[int]) -> str | None:
    shape = model.site.shape
    if not ranks:
        return f"its matrices are {shape.in_features} x {shape.out_features}: factors are smaller at no rank"
    if math.prod(model.input_shape) == 0:
        return f"its input of shape {list(model.input_shape)} is empty"
    malformed = [tensor for tensor in model.proto.graph.initializer if min(tensor.dims, default=0) < 0]
    if malformed:
        return f"its {malformed[0].name} has shape {list(malformed[0].dims)}: a dimension below 0"
    if _stored_bytes(model) >= _LARGEST_PROTO:
        return f"its weight and bias have {_stored_bytes(model)} bytes, more than a serialized model can hold"
    return None


def _stored_bytes(model: SiteModel) -> int:
    """Bytes of weight and bias."""
    elements: int = sum(math.prod(tensor.dims) for tensor in model.proto.graph.initializer)
    return elements * model.site.weight.itemsize


def _grid_in_memory(model: SiteModel, form: Form, ranks: Sequence[int], memory_bytes: int) -> tuple[int, ...] | None:
    """The grid whose weights, with the dense one, fit into memory; None where not even the smallest grid's do."""
    for count in range(len(ranks), min(_FEWEST_RANKS, len(ranks)) - 1, -1):
        chosen = _grid(ranks, count)
        choices = [choice for rank in chosen for choice in model.choices(form, rank)]
        stored = [choice.form.parameters(choice.site.shape, choice.rank) for choice in choices]
        factors = sum(stored) * model.site.weight.itemsize
        if _stored_bytes(model) + factors <= memory_bytes:
            return chosen
    return None


def _affordable_ranks(dense: TimedSession, seconds: float) -> int:
    """Ranks that can be warmed up and measured in the fewest passes in time, if each takes as long as dense does."""
    each = fewest_ns(dense)
    return min(_MOST_RANKS, max(_FEWEST_RANKS, int(seconds * 1e9 / each) - 1))
