"""What a model could gain, weight by weight, without compressing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lowrank_onnx.choose import Choice
from lowrank_onnx.factorize import FactorizeOptions, factorize
from lowrank_onnx.model_io import Model
from lowrank_onnx.override_sites import Asked
from lowrank_onnx.progress import Progress
from lowrank_onnx.results import InspectedPlan, InspectedSite
from lowrank_onnx.types import Curves, Site, Spectrum, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight

ENERGY_SHARES = (0.9, 0.95, 0.99)
"""Shares of ||W||_F^2 for which the rank is shown."""


def inspect_weights(
    model: Model,
    groups: Sequence[SharedWeight],
    positions: Mapping[str, int],
    options: FactorizeOptions,
    asked: Mapping[WeightRef, Asked],
    progress: Progress,
) -> tuple[tuple[InspectedSite, ...], tuple[Curves, ...]]:
    """The figures of every site, and the spectrum of every weight up to the largest rank that may be asked of it."""
    weights = WeightReader(model, (group.weight for group in groups))
    found: list[InspectedSite] = []
    curves: list[Curves] = []
    with progress.stage("reading spectra", len(groups)) as stage:
        for group in groups:
            useful = group.forms[0].largest_useful_rank(group.shape)
            stored = weights.read(group.weight)
            _, spectrum = factorize(stored, group.weight, group.sites[0].to_matrices, max(useful, 1), options)
            del stored
            curves.append({group.forms[0].family: spectrum})
            overridden = asked[group.weight].description if group.weight in asked else ""
            found.extend(
                _inspected(site, spectrum, useful, positions.get(site.name), overridden) for site in group.sites
            )
            stage.advance(detail=group.weight.name)
    return tuple(found), tuple(curves)


def with_plans(
    sites: Sequence[InspectedSite],
    groups: Sequence[SharedWeight],
    plans: Sequence[tuple[InspectedPlan, Sequence[Choice]]],
) -> tuple[InspectedSite, ...]:
    """The sites with the rank that each plan would take."""
    ranks = {
        site.name: tuple((plan.share, choices[index].candidate.rank) for plan, choices in plans)
        for index, group in enumerate(groups)
        for site in group.sites
    }
    return tuple(replace(site, budget_ranks=ranks[site.name]) for site in sites)


def _inspected(site: Site, spectrum: Spectrum, useful: int, positions: int | None, overridden: str) -> InspectedSite:
    shape = site.own.shape
    return InspectedSite(
        name=site.name,
        op_type=site.op_type,
        weight=site.weight.name,
        dtype=site.weight.dtype,
        groups=shape.groups,
        in_features=shape.in_features,
        out_features=shape.out_features,
        parameters=shape.parameters,
        macs=None if positions is None else site.dense_macs(positions),
        break_even_rank=useful,
        stable_rank=stable_rank(spectrum),
        energy_ranks=tuple((share, energy_rank(spectrum, share)) for share in ENERGY_SHARES),
        overridden=overridden,
    )


def stable_rank(spectrum: Spectrum) -> float:
    """||W||_F^2 / ||W||_2^2, with the energy of all groups over the sum of their largest squared singular values."""
    largest = float(np.sum(np.square(spectrum.values[:, 0], dtype=np.float64)))
    return spectrum.energy / largest if largest else 0.0


def energy_rank(spectrum: Spectrum, share: float) -> int | None:
    """The smallest rank that keeps `share` of the energy; None where it lies beyond the values computed."""
    if spectrum.energy == 0.0:
        return 0
    kept = np.cumsum(np.sum(np.square(spectrum.values, dtype=np.float64), axis=0)) / spectrum.energy
    reached = np.flatnonzero(kept >= share)
    return int(reached[0]) + 1 if reached.size else None
