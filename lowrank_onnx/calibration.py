"""What real feeds teach before anything is planned: what each weight's inputs look like, and what its damage costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import onnx

from lowrank_onnx.candidates import tail_energy
from lowrank_onnx.config import SensitivityLevel
from lowrank_onnx.damage import Sensitivity, Unmeasured, interpolate_error
from lowrank_onnx.evaluate import Feeds, Session
from lowrank_onnx.factorize import FactorSpool
from lowrank_onnx.moments import Moment, merge_moments, observe_moments
from lowrank_onnx.progress import Progress
from lowrank_onnx.sensitivity import count_runs, measure_sensitivity
from lowrank_onnx.types import Array, Site, Spectrum, WeightRef
from lowrank_onnx.weights import SharedWeight

RunModel = Callable[[onnx.ModelProto], Session]
"""Opens a session for an instrumented copy of the model's skeleton."""

PROBE_SHARES = (0.5, 0.2, 0.85)
"""Ranks at which a weight's effect is measured, as shares of the largest useful rank, the most telling first."""

FEEDS_TO_PROBE = {"fast": 2, "full": 8}
"""Feeds on which each probe is run."""


def weight_moments(
    skeleton: onnx.ModelProto,
    groups: Sequence[SharedWeight],
    run: RunModel,
    feeds: Feeds,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
) -> dict[WeightRef, Moment | str]:
    """The second moment of each weight's inputs over all its sites, or the reason why there is none."""
    sites = [site for group in groups for site in group.sites]
    by_site = observe_moments(skeleton, sites, run, feeds, seed=seed, directory=directory, progress=progress)
    return {group.weight: _merged(group, by_site) for group in groups}


def _merged(group: SharedWeight, by_site: Mapping[str, Moment | str]) -> Moment | str:
    found: list[Moment] = []
    for site in group.sites:
        moment = by_site[site.name]
        if isinstance(moment, str):
            return moment
        found.append(moment)
    return merge_moments(found)


def weight_sensitivities(
    skeleton: onnx.ModelProto,
    groups: Sequence[SharedWeight],
    spectra: Sequence[Spectrum | None],
    spool: FactorSpool,
    run: RunModel,
    feeds: Feeds,
    level: SensitivityLevel,
    progress: Progress,
) -> dict[WeightRef, Sensitivity | Unmeasured]:
    """The measured effect on the outputs of compressing each factorized weight alone; empty where `level` is "off".

    "fast" tries one rank of each weight on two feeds, "full" up to three on eight.
    """
    by_weight = {g.weight: s for g, s in zip(groups, spectra, strict=True) if s is not None}
    measured = [group for group in groups if group.weight in by_weight]
    if level == "off" or not measured:
        return {}
    ranks_of = partial(_probe_ranks, by_weight, 1 if level == "fast" else len(PROBE_SHARES))
    max_feeds = FEEDS_TO_PROBE[level]
    with progress.stage("measuring sensitivity", count_runs(measured, ranks_of, len(feeds), max_feeds)) as stage:
        found = measure_sensitivity(
            skeleton,
            measured,
            run,
            feeds,
            partial(_approximation, spool),
            lambda group, rank: tail_energy(by_weight[group.weight], rank),
            ranks_of,
            max_feeds=max_feeds,
            progress=stage,
        )
    return {result.weight: result for result in found}


def _probe_ranks(spectra: Mapping[WeightRef, Spectrum], count: int, group: SharedWeight) -> tuple[int, ...]:
    largest = spectra[group.weight].values.shape[-1]
    return tuple(max(1, round(share * largest)) for share in PROBE_SHARES[:count])


def _approximation(spool: FactorSpool, group: SharedWeight, rank: int) -> Array:
    """L R in the stored layout and dtype of the weight."""
    stored = spool.get(group.weight)
    left, right = (stored.read(part, rank).astype(stored.accumulation) for part in ("left", "right"))
    return stored_layout(left @ right, group.sites[0]).astype(stored.read("left", 1).dtype)


def stored_layout(matrices: Array, site: Site) -> Array:
    """From (groups, in, out) back to the layout in which the site's weight is stored."""
    forward = site.to_matrices
    moved = tuple(forward.split[axis] for axis in forward.order)
    back = tuple(forward.order.index(axis) for axis in range(len(forward.order)))
    return matrices.reshape(moved).transpose(back).reshape(site.weight.shape)


def predicted_damage(
    groups: Sequence[SharedWeight], sensitivities: Mapping[WeightRef, Sensitivity | Unmeasured]
) -> tuple[Callable[[float], float], ...]:
    """For each weight, from relative squared tail energy to the damage that the planner adds up.

    Where the effect was measured, damage is the predicted relative squared error of the outputs. A weight whose effect
    couldn't be measured gets the median importance of the others; with none measured, damage is the tail itself.
    """
    known = [s.importance for s in sensitivities.values() if isinstance(s, Sensitivity) and math.isfinite(s.importance)]
    typical = statistics.median(known) if known else 1.0
    return tuple(_damage(sensitivities.get(group.weight), typical) for group in groups)


def _damage(sensitivity: Sensitivity | Unmeasured | None, typical: float) -> Callable[[float], float]:
    if isinstance(sensitivity, Sensitivity):
        return partial(interpolate_error, sensitivity)
    return lambda tail: typical * tail
