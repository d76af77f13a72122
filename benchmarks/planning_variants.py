"""The ways to choose factors and ranks that are compared, and one workbench for all of them.

The stages are the library's own, put together so that what two variants share is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowrank_onnx import passes
from lowrank_onnx.attempt import Workshop, error_of
from lowrank_onnx.calibration import predicted_damage, weight_moments, weight_sensitivities
from lowrank_onnx.candidate_model import build_candidate
from lowrank_onnx.candidates import PlannedWeight, dense_candidate
from lowrank_onnx.choose import Choice, CostName, ranks_to_factor
from lowrank_onnx.config import Config, KeepMacs, KeepParams, Method
from lowrank_onnx.costs import figure
from lowrank_onnx.effort import SensitivityLevel
from lowrank_onnx.evaluate import Feeds, Runner, Session, open_session
from lowrank_onnx.factor_families import spool_factors
from lowrank_onnx.factorize import FactorizeOptions
from lowrank_onnx.few_samples import believed, honest_curves, validate_moments
from lowrank_onnx.folds import fold_feeds, samples_to_try
from lowrank_onnx.held_out import HeldOut, measure_held_out
from lowrank_onnx.learning import Inputs, find_plan_judge
from lowrank_onnx.model_io import load_model, stage_model
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.shrinkage import ShrunkMoments
from lowrank_onnx.observed import FeedSource, observe
from lowrank_onnx.preparation import factorize_options
from lowrank_onnx.progress import SILENT
from lowrank_onnx.refine import Refined, refine_factors
from lowrank_onnx.results import PlanTrial
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.settle import settle
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.stage_clock import StageClock
from lowrank_onnx.types import Curves, WeightRef
from lowrank_onnx.weights import SharedWeight, group_by_weight, total_positions

DEFAULTS = Config()


@dataclass(frozen=True, slots=True)
class Variant:
    """One way: which factors, in which norm, and what the planner adds up."""

    name: str
    method: Method
    power_iterations: int
    oversampling: int
    whiten: bool
    sensitivity: SensitivityLevel
    cross_validated: bool = False
    """Whether few samples are held against each other, as `compress` does."""


PUBLISHED = 0
"""Columns of oversampling in the paper's own algorithm."""

VARIANTS = (
    Variant("plain SVD", "svd", 1, PUBLISHED, False, "off"),
    Variant("RSVD (q=1)", "rsvd", 1, PUBLISHED, False, "off"),
    Variant("RSI (q=4)", "rsi", 4, PUBLISHED, False, "off"),
    Variant("whitened, energy ranks", "svd", 1, PUBLISHED, True, "off"),
    Variant("planner, fast", DEFAULTS.method, DEFAULTS.power_iterations, DEFAULTS.oversampling, True, "fast", True),
    Variant("planner, full", DEFAULTS.method, DEFAULTS.power_iterations, DEFAULTS.oversampling, True, "full", True),
)
"""Energy ranks minimise the sum of relative tail energies, each in the norm of its factors. "whitened, energy ranks" is
the recipe of BALF (arXiv 2509.25136), re-implemented: whitening, full SVD, a knapsack on normalized energy."""

BALF = "whitened, energy ranks"


@dataclass(frozen=True, slots=True)
class Planned:
    """The choice for each weight, the share of the cost that is kept, and the trusts that were tried."""

    choices: tuple[Choice, ...]
    kept: float
    trials: tuple[PlanTrial, ...]


Key = tuple[Method, int, int, bool, bool]


def _key(variant: Variant) -> Key:
    """What decides a variant's factors."""
    return (
        variant.method,
        variant.power_iterations,
        variant.oversampling,
        variant.whiten,
        variant.cross_validated,
    )


class Workbench:
    """A model with its feeds, and everything of it that was computed so far.

    Attributes
    ----------
    model, groups, observed : the model, its weights with their sites, and its runs, as the library has them.
    op_types : the operators whose weights are looked at.
    """

    op_types = DEFAULTS.op_types

    def __init__(self, path: Path, feeds: FeedSource, directory: Path, *, seed: int) -> None:
        self.model = load_model(path)
        sites, _ = passes.find_sites(self.model.skeleton, op_types=self.op_types)
        self.groups = group_by_weight(sites)
        self.observed = observe(self.model, sites, feeds, provider=DEFAULTS.provider, seed=seed)
        self._directory, self._seed = directory, seed
        self._moments: dict[WeightRef, Moment] | None = None
        self._validated: Inputs | None = None
        self._tried: dict[Key, HeldOut] = {}
        self._factors: dict[Key, tuple[FactorSpool, tuple[Curves, ...]]] = {}
        self._measured: dict[Variant, dict[WeightRef, Sensitivity | Unmeasured]] = {}

    @property
    def original(self) -> Runner:
        """The model as it is."""
        return self.observed.session

    def plan(self, variant: Variant, cost: CostName, share: float) -> Planned:
        """What the library settles for a share, blind to time."""
        spool, curves = self._factorized(variant)
        sensitivities = self.sensitivities(variant)
        weights = self._weights(sensitivities)
        by_name = {weight.name: known for weight, known in zip(weights, curves, strict=True)}
        workshop = Workshop(self.model, self.groups, spool, self._directory, self.observed)
        judge = find_plan_judge(workshop, self._held_out(variant)) if sensitivities else None
        config = Config(budget=KeepParams(share) if cost == "parameters" else KeepMacs(share), objective="size")
        choices, _ = settle(weights, by_name, config, partial(error_of, workshop), SILENT, plan_judge=judge)
        kept = sum(figure(choice.candidate, cost) for choice in choices)
        dense = sum(figure(dense_candidate(weight), cost) for weight in weights)
        return Planned(choices, kept / dense, () if judge is None else tuple(judge.trials))

    @contextmanager
    def build(self, variant: Variant, choices: Sequence[Choice], spool: FactorSpool | None = None) -> Iterator[Session]:
        """A session for the model of these choices, with the variant's factors unless others are given."""
        chosen = self._factorized(variant)[0] if spool is None else spool
        candidate = build_candidate(self.model, self.groups, choices, chosen, measure=False)
        with stage_model(candidate.model, self._directory / "candidate.onnx") as staged:
            yield open_session(staged.path)

    def write(self, variant: Variant, choices: Sequence[Choice], target: Path) -> None:
        """Write the model of these choices with the variant's factors."""
        spool, _ = self._factorized(variant)
        self.write_with(spool, choices, target)

    def write_with(self, spool: FactorSpool, choices: Sequence[Choice], target: Path) -> None:
        """Write the model of these choices with the factors of a spool."""
        candidate = build_candidate(self.model, self.groups, choices, spool, measure=False)
        with stage_model(candidate.model, target, force=True) as staged:
            staged.commit()

    def one_by_one(self, choices: Sequence[Choice]) -> Iterator[tuple[Choice, ...]]:
        """For each weight that is replaced the choices that replace it alone."""
        dense = [Choice(dense_candidate(weight), "") for weight in self._weights({})]
        for index, choice in enumerate(choices):
            if choice.candidate.rank is not None:
                yield (*dense[:index], choice, *dense[index + 1 :])

    def refine(self, variant: Variant, choices: Sequence[Choice], clock: StageClock | None = None) -> Refined:
        """The stage that solves the factors again, for these choices."""
        spool, _ = self._factorized(variant)
        workshop = Workshop(self.model, self.groups, spool, self._directory, self.observed)
        return refine_factors(workshop, choices, factorize_options(Config(seed=self._seed)), clock=clock)

    @property
    def calibration(self) -> Feeds:
        """The feeds that the library learns from."""
        return self.observed.calibration

    def sensitivities(self, variant: Variant) -> dict[WeightRef, Sensitivity | Unmeasured]:
        """What was measured of each weight; empty for a variant without sensitivity."""
        if variant not in self._measured:
            spool, curves = self._factorized(variant)
            held_out = self._held_out(variant)
            self._measured[variant] = (
                held_out.sensitivities(self.groups, curves)
                if held_out
                else weight_sensitivities(
                    self.model.skeleton,
                    self.groups,
                    curves,
                    spool,
                    self.observed.run,
                    self.observed.calibration,
                    variant.sensitivity,
                    SILENT,
                )
            )
        return self._measured[variant]

    def _weights(self, sensitivities: dict[WeightRef, Sensitivity | Unmeasured]) -> tuple[PlannedWeight, ...]:
        damages = predicted_damage(self.groups, sensitivities)
        return tuple(
            PlannedWeight(
                name=f"{group.weight.scope!r} {group.weight.name}",
                shape=group.shape,
                forms=group.forms[:1],
                positions=self.positions(group),
                damage=damage,
            )
            for group, damage in zip(self.groups, damages, strict=True)
        )

    def moments(self) -> dict[WeightRef, Moment]:
        """What each weight's inputs look like on the calibration feeds."""
        if self._moments is None:
            found = weight_moments(
                self.model.skeleton,
                self.groups,
                self.observed.run,
                self.observed.calibration,
                seed=self._seed,
                directory=self.scratch("moments"),
                progress=SILENT,
            )
            self._moments = {weight: moment for weight, moment in found.items() if isinstance(moment, Moment)}
        return self._moments

    def positions(self, group: SharedWeight) -> int | None:
        """How often a weight is applied in one run."""
        return total_positions(group.sites, self.observed.positions)

    def _inputs(self, variant: Variant) -> Inputs:
        """What the weights' inputs look like to a variant, before anything is tried on samples held out."""
        if not variant.whiten:
            return Inputs({})
        if not variant.cross_validated:
            return Inputs(self.moments())
        if self._validated is None:
            model, run, feeds = self.model, self.observed.run, self.observed.calibration
            folds = fold_feeds(
                model,
                self.groups,
                run,
                self.observed.session.inputs,
                feeds,
                seed=self._seed,
                directory=self.scratch("parts"),
                progress=SILENT,
                tried=samples_to_try(self.groups, self.observed.positions, feeds),
            )
            moments = self.moments()
            validated = validate_moments(model, self.groups, moments, feeds, folds, seed=self._seed)
            self._validated = Inputs(believed(moments, validated), folds, validated)
        return self._validated

    def _held_out(self, variant: Variant) -> HeldOut | None:
        """What few samples say of factors that they took no part in."""
        inputs = self._inputs(variant)
        if not any(fold.tried for fold in inputs.folds):
            return None
        key = _key(variant)
        if key not in self._tried:
            self._tried[key] = measure_held_out(
                self.model,
                self.groups,
                self._ranks(),
                self.observed,
                inputs.folds,
                inputs.validated,
                self._options(variant),
                variant.sensitivity,
                self.scratch(f"held-out-{len(self._tried)}"),
                SILENT,
            )
        return self._tried[key]

    def _ranks(self) -> list[dict[str, int]]:
        return [ranks_to_factor(weight, KeepParams(0.5), None) for weight in self._weights({})]

    def _options(self, variant: Variant) -> FactorizeOptions:
        return FactorizeOptions(
            method=variant.method,
            power_iterations=variant.power_iterations,
            oversampling=variant.oversampling,
            seed=self._seed,
            device=DEFAULTS.device,
        )

    def _factorized(self, variant: Variant) -> tuple[FactorSpool, tuple[Curves, ...]]:
        key = _key(variant)
        if key not in self._factors:
            inputs, held_out = self._inputs(variant), self._held_out(variant)
            if held_out is not None:
                inputs = inputs.without(self.model, self.groups, held_out.unweighted)
            spool = FactorSpool(self.scratch(f"factors-{len(self._factors)}"))
            whitening = ShrunkMoments(inputs.known, inputs.shares)
            promised = spool_factors(
                self.model, self.groups, self._ranks(), spool, self._options(variant), whitening, SILENT
            )
            pairs = zip(self.groups, promised, strict=True)
            curves = tuple(honest_curves(known, inputs.validated.get(group.weight)) for group, known in pairs)
            self._factors[key] = (spool, curves)
        return self._factors[key]

    def scratch(self, name: str) -> Path:
        """A new directory, which goes with the workbench's own."""
        place = self._directory / name
        place.mkdir(parents=True)
        return place
