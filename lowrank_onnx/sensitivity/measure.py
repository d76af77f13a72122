"""What compressing one weight alone does to the model's outputs, measured: the unit in which a planner adds up damage.

A small change E of one weight changes the outputs by about J E, so their squared error grows in proportion to the
weight's tail energy. The factor, the weight's importance, differs by orders of magnitude between the weights of a
model: it is measured by running the model with that one weight replaced, at a few ranks and on a few feeds.

One session serves all weights: a copy of the model in which they can be overridden at run time. The baseline comes from
that session too, so that both sides have the same fusions and the same rounding. The price is that onnxruntime can't
prepack a weight that may change, so these runs are slower than the original's.

The error of the outputs is the relative squared L2 error, ||y' - y||^2 / ||y||^2 over all feeds in float64, of the
output where it is largest: the square of what `lowrank_onnx.evaluate.compare_outputs` and a verdict report (for logits
without the level that is common to a row). Outputs
that aren't floats (labels, counts) say little about a small change, so they count only where there is no float output:
then the error is the share of them that changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import onnx

from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.accumulate import OutputComparison
from lowrank_onnx.evaluate.feed_arrays import is_float
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.progress import SILENT, StageProgress
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured, fit_importance, interpolate_error
from lowrank_onnx.sensitivity.overridable import make_overridable
from lowrank_onnx.types import Array, Feed, WeightRef, numpy_dtype, overall_error
from lowrank_onnx.weights import SharedWeight

__all__ = [
    "OverridableRunner",
    "Sensitivity",
    "Unmeasured",
    "count_runs",
    "interpolate_error",
    "measure_sensitivity",
]


class OverridableRunner(Runner, Protocol):
    """A session that says which initializers a feed may override."""

    @property
    def overridable(self) -> tuple[InputSpec, ...]:
        """The initializers that are graph inputs too."""
        ...


@dataclass(frozen=True, slots=True)
class _Baseline:
    """Feeds and what the model makes of them when nothing is overridden; only the outputs that are compared."""

    session: OverridableRunner
    feeds: tuple[Feed, ...]
    outputs: tuple[str, ...]
    values: tuple[dict[str, Any], ...]


def measure_sensitivity(
    skeleton: onnx.ModelProto,
    groups: Sequence[SharedWeight],
    run: Callable[[onnx.ModelProto], OverridableRunner],
    feeds: Iterable[Feed],
    approximate: Callable[[SharedWeight, int], Array],
    tails: Callable[[SharedWeight, int], float],
    ranks_of: Callable[[SharedWeight], Sequence[int]],
    *,
    max_feeds: int,
    enough_ranks: int | None = None,
    decode: Callable[[WeightRef], Array] | None = None,
    known: Mapping[WeightRef, Sensitivity | Unmeasured] = MappingProxyType({}),
    finished: Callable[[Sensitivity | Unmeasured], None] = lambda result: None,
    progress: StageProgress | None = None,
) -> tuple[Sensitivity | Unmeasured, ...]:
    """Run the model with one weight at a time replaced by its low-rank approximation, and compare the outputs.

    The feeds and the outputs of `max_feeds` runs are in memory, and one approximation at a time.

    Parameters
    ----------
    skeleton : the model, with or without its weights; it is not changed.
    groups : the weights, each with all sites that use it.
    run : opens a session for the copy (and restores the weights first, where the skeleton lacks them).
    feeds : feeds for the model; the first `max_feeds` are used.
    approximate : L R at a rank, in the stored layout, shape and dtype.
    tails : the relative squared tail energy at a rank: plain, or weighted by the inputs' second moments.
    ranks_of : the ranks to try, the most telling first. A rank whose tail is 0 tells nothing of the importance.
    max_feeds : how many feeds to run for each rank.
    enough_ranks : ranks beyond this number are tried only while the tail-energy model doesn't fit; None tries all.
    decode : the values of a weight that is stored in another type or layout than its nodes read; without it the effect
        of such a weight isn't measured.
    known : results of an earlier call for the same groups; they are not measured again.
    finished : is given each other result as soon as it is there.
    progress : is advanced by 1 for each run, and at once for runs that aren't needed: by `count_runs` in all.

    Returns
    -------
    One entry for each group, in their order.

    Raises
    ------
    UsageError
        There is no feed, `max_feeds` is below 1, or no output is finite and numeric.
    ModelError
        The model can't be run on the feeds.
    ValueError
        `approximate`, `tails` or `ranks_of` gave what it must not, or `enough_ranks` is below 1.
    """
    if max_feeds < 1:
        raise UsageError(f"max_feeds {max_feeds}: expected at least 1")
    if enough_ranks is not None and enough_ranks < 1:
        raise ValueError(f"enough_ranks {enough_ranks}: expected at least 1, or None for all")
    if not groups:
        return ()
    with SILENT.stage("sensitivity", None) as silent:
        stage = silent if progress is None else progress
    readers = {group.weight: group.sites for group in groups}
    copy = make_overridable(skeleton, readers, readers=readers, decode=decode)
    session = run(copy.skeleton)
    baseline = _run_baseline(session, tuple(itertools.islice(feeds, max_feeds)), stage)
    accepted = {spec.name for spec in session.overridable}
    results: list[Sensitivity | Unmeasured] = []
    for group in groups:
        weight, ranks = group.weight, _checked_ranks(group, ranks_of)
        if weight in known:
            stage.advance(len(ranks) * len(baseline.feeds), detail=weight.name)
            results.append(known[weight])
            continue
        energies = tuple(_checked_tail(group, rank, tails) for rank in ranks)
        reason = copy.reasons.get(weight) or _reason_not_to_measure(weight, copy.names[weight], accepted, energies)
        if reason is not None:
            stage.advance(len(ranks) * len(baseline.feeds), detail=weight.name)
            results.append(Unmeasured(weight, reason))
        else:
            name = copy.names[weight]
            results.append(_measure(baseline, group, name, ranks, energies, approximate, enough_ranks, stage))
        finished(results[-1])
    return tuple(results)


def count_runs(
    groups: Sequence[SharedWeight], ranks_of: Callable[[SharedWeight], Sequence[int]], feeds: int, max_feeds: int
) -> int:
    """Runs that `measure_sensitivity` reports for `feeds` feeds: the total of its stage."""
    ranks = sum(len(dict.fromkeys(ranks_of(group))) for group in groups)
    return min(feeds, max_feeds) * (1 + ranks) if groups else 0


def _run_baseline(session: OverridableRunner, feeds: tuple[Feed, ...], stage: StageProgress) -> _Baseline:
    if not feeds:
        raise UsageError("there is no feed to measure sensitivity on: give at least one")
    wanted = {spec.name for spec in session.inputs}
    read = tuple({name: feed[name] for name in feed if name in wanted} for feed in feeds)
    values: list[dict[str, Any]] = []
    outputs: tuple[str, ...] = ()
    for feed in read:
        # Which outputs are floats is seen on the first feed: a sequence or a map says so only by what it holds.
        value = session.run(feed, outputs or None)
        outputs = outputs or _telling_outputs(value)
        values.append({name: value[name] for name in outputs})
        stage.advance(detail="original")
    comparison = OutputComparison(session, outputs)
    for value in values:
        comparison.add(value, value)
    problems = {output.name: problem for output in comparison.statistics() for problem in output.problems[:1]}
    usable = tuple(name for name in outputs if name not in problems)
    if not usable:
        found = (
            "; ".join(f"output {name!r}: {problem}" for name, problem in problems.items())
            or "no output can be compared"
        )
        raise UsageError(f"sensitivity can't be measured on these feeds: {found}")
    return _Baseline(session, read, usable, tuple(values))


def _telling_outputs(values: dict[str, Any]) -> tuple[str, ...]:
    floats = tuple(name for name, value in values.items() if _holds(value, is_float))
    return floats or tuple(name for name, value in values.items() if _holds(value, lambda d: d.kind in "OUSTiub"))


def _holds(value: Any, kind: Callable[[np.dtype[Any]], bool]) -> bool:
    """Whether a tensor, or any tensor in a sequence or map, is of a kind."""
    if value is None:
        return False
    if isinstance(value, dict):
        return any(_holds(entry, kind) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds(entry, kind) for entry in value)
    return kind(np.asarray(value).dtype)


def _checked_ranks(group: SharedWeight, ranks_of: Callable[[SharedWeight], Sequence[int]]) -> tuple[int, ...]:
    ranks = tuple(dict.fromkeys(ranks_of(group)))
    wrong = next((rank for rank in ranks if not 1 <= rank <= group.shape.max_rank), None)
    if wrong is not None:
        raise ValueError(f"weight {group.weight.name!r}: rank {wrong}: expected 1 to {group.shape.max_rank}")
    return ranks


def _checked_tail(group: SharedWeight, rank: int, tails: Callable[[SharedWeight, int], float]) -> float:
    tail = float(tails(group, rank))
    if not 0.0 <= tail < math.inf:
        raise ValueError(f"weight {group.weight.name!r}: tail energy {tail!r} at rank {rank}: expected 0 or more")
    return tail


def _reason_not_to_measure(weight: WeightRef, name: str, accepted: set[str], energies: Sequence[float]) -> str | None:
    if name not in accepted:
        return f"onnxruntime doesn't let weight '{weight.name}' be overridden"
    if not energies:
        return "no rank to try"
    if not any(energies):
        return "nothing is lost at any rank tried"
    return None


def _measure(
    baseline: _Baseline,
    group: SharedWeight,
    name: str,
    ranks: Sequence[int],
    energies: Sequence[float],
    approximate: Callable[[SharedWeight, int], Array],
    enough_ranks: int | None,
    stage: StageProgress,
) -> Sensitivity:
    errors: list[float] = []
    problem = ""
    for rank in ranks:
        if enough_ranks is not None and len(errors) >= enough_ranks and any(energies[: len(errors)]):
            importance, fits = fit_importance(energies, errors)
            if fits or math.isinf(importance):
                stage.advance((len(ranks) - len(errors)) * len(baseline.feeds), detail=group.weight.name)
                break
        # The approximation is passed on without a name here: it is gone when the next one is made.
        detail = f"{group.weight.name}, rank {rank}"
        error, found = _output_error(baseline, {name: _checked(group, rank, approximate(group, rank))}, detail, stage)
        errors.append(error)
        problem = problem or (f"rank {rank}: {found}" if found else "")
    tried = len(errors)
    importance, fits = fit_importance(energies, errors)
    return Sensitivity(
        group.weight, tuple(ranks[:tried]), tuple(errors), tuple(energies[:tried]), importance, fits, problem
    )


def _checked(group: SharedWeight, rank: int, values: Array) -> Array:
    weight = group.weight
    if values.shape != weight.shape or values.dtype != numpy_dtype(weight.dtype):
        raise ValueError(
            f"weight {weight.name!r}: its approximation at rank {rank} is {values.dtype.name} {values.shape}: "
            f"expected the stored {weight.dtype} {weight.shape}"
        )
    return values


def _output_error(
    baseline: _Baseline, override: dict[str, Array], detail: str, stage: StageProgress
) -> tuple[float, str]:
    """The largest relative squared error of any output, and why it is infinite if it is."""
    comparison = OutputComparison(baseline.session, baseline.outputs)
    for index, (feed, expected) in enumerate(zip(baseline.feeds, baseline.values, strict=True)):
        try:
            actual = baseline.session.run({**feed, **override}, baseline.outputs)
        except ModelError as error:
            # The original ran on this feed: what fails is the compressed weight, not the model.
            stage.advance(len(baseline.feeds) - index, detail=detail)
            return math.inf, str(error)
        comparison.add(expected, actual)
        stage.advance(detail=detail)
    statistics = comparison.statistics()
    overall = overall_error(statistics)
    if math.isfinite(overall * overall):
        return overall * overall, ""
    worst = max(statistics, key=lambda output: output.error)
    grown = f"its relative error is {worst.error:.3g}"
    text = next(iter(worst.problems), "it was all zero, and no longer is" if math.isinf(worst.error) else grown)
    return math.inf, f"output {worst.name!r}: {text}"
