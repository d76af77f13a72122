"""What a walk has found so far, kept in a cache, so that one that was broken off goes on at the step that it reached.

All that a step finds depends on what the steps before it found, and that on where the walk began: the model, the feeds,
the options and the planned factors. These name a step's entries together with its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from lowrank_onnx.cache import Cache, Codec, Slot
from lowrank_onnx.cache.codecs import check_finite, checked_number, checked_text, checked_whole
from lowrank_onnx.cache.entry_file import Entry
from lowrank_onnx.cache.facts import comparison_facts, feed_facts
from lowrank_onnx.evaluate import Feeds, Runner
from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.replaced import Replaced
from lowrank_onnx.spool import FactorSpool, StoredFactors
from lowrank_onnx.types import Array


@dataclass(frozen=True, slots=True)
class Trial:
    """What the whole model says of a walk.

    Attributes
    ----------
    kept : positions of the weights whose new factors stay.
    error_before, error_after : of the outputs on the held-out feeds.
    """

    kept: tuple[int, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """The results of one walk; `cache` is for what depends on all that the walk begins with."""

    cache: Cache

    def recall(self, step: int, weights: Sequence[Replaced], spool: FactorSpool) -> list[Outcome] | None:
        """What became of the weights of a step, with its factors put into the spool; None where it isn't known."""
        found = self._step(step).get(_step_codec(weights))
        if found is None:
            return None
        factors: list[tuple[Replaced, Mapping[str, Array], str]] = []
        for outcome, place, solver in found:
            if outcome.ridge is not None:
                parts = self._factors(step, place).get(_parts_codec(weights[place].factors(spool)))
                if parts is None:
                    return None
                factors.append((weights[place], parts, solver))
        for one, parts, solver in factors:
            spool.put(one.weight, one.factors(spool).form, one.rank, parts, solver)
        return [outcome for outcome, _, _ in found]

    def store(self, step: int, weights: Sequence[Replaced], outcomes: Iterable[Outcome], spool: FactorSpool) -> None:
        """Keep what a step has found, the factors first."""
        places = {one.weight: place for place, one in enumerate(weights)}
        found = []
        for outcome in outcomes:
            place = places[outcome.weight]
            stored = weights[place].factors(spool)
            if outcome.ridge is not None:
                parts = {part: stored.values(part) for part in stored.files}
                self._factors(step, place).put(_parts_codec(stored), parts)
            found.append((outcome, place, stored.solver))
        self._step(step).put(_step_codec(weights), found)

    def trial(self, judges: Feeds, original: Runner) -> Slot:
        """The place of the `Trial` on some feeds, against the original's outputs."""
        return self.cache.slot("refine trial", lambda: chain(comparison_facts(original), feed_facts(judges)))

    def _step(self, step: int) -> Slot:
        return self.cache.slot("refine step", lambda: (step,))

    def _factors(self, step: int, place: int) -> Slot:
        return self.cache.slot("refined factors", lambda: (step, place))


def factor_facts(weights: Iterable[Replaced], spool: FactorSpool) -> Iterator[object]:
    """The forms, ranks and values of the factors that a walk begins with; one is in memory at a time."""
    for one in weights:
        stored = one.factors(spool)
        yield (one.weight, stored.form, stored.rank, stored.solver)
        for part in stored.files:
            yield from (part, stored.values(part))


def trial_codec(weights: int) -> Codec[Trial]:
    """For a walk through so many weights."""
    return Codec({}, _encode_trial, partial(_decode_trial, weights))


def _encode_trial(trial: Trial) -> Entry | None:
    errors = {"error_before": trial.error_before, "error_after": trial.error_after}
    if not all(map(math.isfinite, errors.values())):
        return None
    return Entry({"kept": list(trial.kept), **errors})


def _decode_trial(weights: int, entry: Entry) -> Trial:
    meta = entry.meta
    kept = tuple(_place(place, weights) for place in meta["kept"])
    errors = (checked_number(meta[name]) for name in ("error_before", "error_after"))
    return Trial(kept, *errors)


def _parts_codec(planned: StoredFactors) -> Codec[Mapping[str, Array]]:
    shapes = {part: planned.values(part).shape for part in planned.files}
    return Codec(shapes, lambda parts: Entry({}, parts), _decode_parts)


def _decode_parts(entry: Entry) -> Mapping[str, Array]:
    check_finite(entry.arrays)
    return entry.arrays


Found: TypeAlias = list[tuple[Outcome, int, str]]
"""Of each weight what became of it, its place in the step, and what made its factors."""

_PLAIN = ("ridge", "reason", "error_before", "error_after", "rows", "residual")


def _step_codec(weights: Sequence[Replaced]) -> Codec[Found]:
    return Codec({}, _encode_step, partial(_decode_step, weights))


def _encode_step(found: Found) -> Entry:
    described = [
        {"place": place, "solver": solver, **{name: getattr(outcome, name) for name in _PLAIN}}
        for outcome, place, solver in found
    ]
    return Entry({"weights": described})


def _decode_step(weights: Sequence[Replaced], entry: Entry) -> Found:
    found = [_decode_outcome(weights, meta) for meta in entry.meta["weights"]]
    if sorted(place for _, place, _ in found) != list(range(len(weights))):
        raise ValueError("it speaks of other weights")
    return found


def _decode_outcome(weights: Sequence[Replaced], meta: Mapping[str, Any]) -> tuple[Outcome, int, str]:
    place = _place(meta["place"], len(weights))
    ridge, before, after = (
        None if meta[name] is None else checked_number(meta[name]) for name in ("ridge", "error_before", "error_after")
    )
    outcome = Outcome(
        weight=weights[place].weight,
        ridge=ridge,
        reason=checked_text(meta["reason"]),
        error_before=before,
        error_after=after,
        rows=checked_whole(meta["rows"]),
        residual=_flag(meta["residual"]),
    )
    return outcome, place, checked_text(meta["solver"])


def _place(value: Any, count: int) -> int:
    if not 0 <= checked_whole(value) < count:
        raise ValueError(f"{value!r}: expected a place below {count}")
    return int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}: expected true or false")
    return value
