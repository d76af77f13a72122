"""What is known of a model before anything is chosen: its sites, its run, what the feeds teach about its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from lowrank_onnx import passes
from lowrank_onnx.absorb import Absorbed, absorb_products
from lowrank_onnx.calibration import predicted_damage
from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import ranks_to_factor
from lowrank_onnx.config import Config, KeepMacs
from lowrank_onnx.evaluate.logits import find_logits
from lowrank_onnx.evaluate.turns import plan_sessions
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.model_io import Model, ModelSource, load_model
from lowrank_onnx.observed import FeedSource, Observed, observe
from lowrank_onnx.override_sites import Asked, OverriddenSites, filter_notes, override_sites
from lowrank_onnx.passes import Expansion
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.types import Site, Skipped, WeightRef
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight, group_by_weight, lookup_positions, room_for_factors, total_positions


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of the model before anything is factorized.

    Attributes
    ----------
    source : the path as given, or a graph's name.
    original : as it was loaded.
    expansion : its calls of model-local functions, written out where these hold weights.
    model : the original with its calls written out and its products in place, to which sites and groups belong.
    absorbed : the products.
    asked : what the user's overrides ask of weights.
    notes : on patterns without effect.
    logits : the outputs that are compared as logits.
    """

    source: str
    original: Model
    expansion: Expansion
    model: Model
    absorbed: tuple[Absorbed, ...]
    groups: tuple[SharedWeight, ...]
    skipped: tuple[Skipped, ...]
    asked: Mapping[WeightRef, Asked] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()

    @property
    def saved(self) -> dict[str, int]:
        """How many weights each product saves, by its node's first output."""
        return {one.output: one.saved for one in self.absorbed}

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site of every weight."""
        return tuple(site for group in self.groups for site in group.sites)


def factor_ranks(weight: PlannedWeight, config: Config) -> dict[str, int]:
    """The rank of each factorization that the configured budget may need, by family; empty where it stays dense."""
    return ranks_to_factor(weight, config.budget, config.rank_multiple, allow_larger=config.allow_larger)


def factorize_options(config: Config) -> FactorizeOptions:
    """The part of the options that factors depend on."""
    return FactorizeOptions(
        method=config.method,
        power_iterations=config.power_iterations,
        oversampling=config.oversampling,
        seed=config.seed,
        device=config.device,
    )


def prepare(model: ModelSource, config: Config, base_directory: Path | None, *, absorb: bool = True) -> Prepared:
    """Load a model and find the sites that the options select; `absorb` those that a smaller product can stand for."""
    loaded = load_model(model, base_dir=base_directory)
    logits = find_logits(loaded.skeleton, config.logits)
    expansion = passes.expand_calls(loaded.skeleton)
    expanded = loaded.with_rewrite(expansion.skeleton, {})
    found, skipped = _find_sites(expanded, expansion, config)
    selected, filtered = passes.select_sites(found, include=config.include, exclude=config.exclude)
    notes = filter_notes(found, skipped, config)
    overridden, left_alone = _offer(selected, (*skipped, *filtered), config)
    WeightReader(expanded, (site.weight for site in overridden.sites)).check_sizes()
    # What a user asks of one weight is asked of that weight, not of a product.
    free = {site.output for site in overridden.sites if site.weight not in overridden.asked}
    absorption = absorb_products(expanded, free if absorb else ())
    if absorption.absorbed:
        outputs = {site.output for site in selected}
        found, _ = _find_sites(absorption.model, expansion, config)
        overridden, left_alone = _offer(
            [site for site in found if site.output in outputs], (*skipped, *filtered), config
        )
    return Prepared(
        os.fspath(model) if isinstance(model, str | os.PathLike) else loaded.name,
        loaded,
        expansion,
        absorption.model,
        absorption.absorbed,
        group_by_weight(overridden.sites),
        (*left_alone, *overridden.skipped),
        overridden.asked,
        (*notes, *overridden.notes),
        logits,
    )


def _find_sites(model: Model, expansion: Expansion, config: Config) -> tuple[tuple[Site, ...], tuple[Skipped, ...]]:
    return passes.find_sites(
        model.skeleton, op_types=config.op_types, fix_overridable=config.fix_overridable, kept=expansion.kept
    )


def _offer(
    sites: Sequence[Site], skipped: tuple[Skipped, ...], config: Config
) -> tuple[OverriddenSites, tuple[Skipped, ...]]:
    """The sites with their forms, as the options narrow them, and all that is left alone by then."""
    offered, formless = passes.offer_forms(sites, config.forms)
    left_alone = (*skipped, *formless)
    return override_sites(offered, left_alone, config.overrides), left_alone


def observe_if_needed(
    prepared: Prepared, config: Config, feeds: FeedSource | None, directory: Path | None
) -> Observed | None:
    """Run the original, unless nothing that was asked for needs it."""
    if not config.validate and not isinstance(config.budget, KeepMacs) and feeds is None:
        return None
    return run_original(prepared, config, feeds, directory)


def run_original(
    prepared: Prepared, config: Config, feeds: FeedSource | None, directory: Path | None = None
) -> Observed:
    """Run the original, in a way that leaves room for a second model of its size, or for none where memory is short.

    `directory` is for outputs; None takes the system's temporary directory.
    """
    provider = config.runs_on
    room = 2 * prepared.original.file_bytes
    sessions = plan_sessions(config.one_session, room, provider, directory, prepared.logits)
    return observe(
        prepared.model,
        prepared.sites,
        feeds,
        provider=provider,
        seed=config.seed,
        original=prepared.original,
        sessions=sessions,
    )


def refines(config: Config, observed: Observed | None) -> bool:
    """Whether factors are solved again on the compressed model's inputs; synthetic feeds say nothing about those."""
    return config.preset.refine and observed is not None and not observed.feeds.synthetic and not config.allow_larger


def planned_weights(
    prepared: Prepared, observed: Observed | None, sensitivities: Mapping[WeightRef, Sensitivity | Unmeasured]
) -> tuple[PlannedWeight, ...]:
    """The weights as the planner sees them, with the damage that was measured where it was."""
    positions = observed.positions if observed else {}
    damages = predicted_damage(prepared.groups, sensitivities)
    overrides = [asked.override if (asked := prepared.asked.get(g.weight)) else None for g in prepared.groups]
    return tuple(
        PlannedWeight(
            name=f"{group.weight.scope!r} {group.weight.name}",
            shape=group.shape,
            forms=group.forms,
            positions=total_positions(group.sites, positions),
            lookups=lookup_positions(group.sites, positions),
            damage=damage,
            itemsize=group.weight.itemsize,
            room=room_for_factors(group.weight),
            rank=None if override is None else override.rank,
            emphasis=1.0 if override is None else override.sensitivity or 1.0,
        )
        for group, damage, override in zip(prepared.groups, damages, overrides, strict=True)
    )
