"""Options of a compression: the fields of one frozen dataclass are the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from lowrank_onnx.effort import EFFORTS, Effort, EffortLevel, SensitivityLevel
from lowrank_onnx.errors import UsageError
from lowrank_onnx.metric import Metric
from lowrank_onnx.provider import Provider, ProviderOptions, check_provider_options
from lowrank_onnx.site_override import SiteOverride
from lowrank_onnx.vocabulary import FORM_NAMES as FORM_NAMES
from lowrank_onnx.vocabulary import OP_TYPES as OP_TYPES

Method: TypeAlias = Literal["auto", "rsi", "rsvd", "svd"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Objective: TypeAlias = Literal["latency", "size"]


def _check_share(flag: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise UsageError(f"{flag} {value:g}: expected a share above 0 and at most 1, e.g. {flag} 0.6")


def _check_drop(value: float) -> None:
    if not 0.0 <= value < float("inf"):
        raise UsageError(f"--max-drop {value:g}: expected 0 or more in the metric's unit, e.g. --max-drop 0.01")


@dataclass(frozen=True, slots=True)
class FixedRank:
    """The same rank for every site (``--rank``)."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"--rank {self.rank}: expected a whole number of at least 1, e.g. --rank 64")


@dataclass(frozen=True, slots=True)
class Alpha:
    """r = ceil(alpha * min(in, out)) for every site (``--alpha``)."""

    alpha: float

    def __post_init__(self) -> None:
        _check_share("--alpha", self.alpha)


@dataclass(frozen=True, slots=True)
class Energy:
    """The smallest rank that keeps this share of each weight's squared Frobenius norm (``--energy``)."""

    share: float

    def __post_init__(self) -> None:
        _check_share("--energy", self.share)


@dataclass(frozen=True, slots=True)
class KeepParams:
    """The share of the eligible sites' parameters to keep, least total damage (``--keep-params``)."""

    share: float

    def __post_init__(self) -> None:
        _check_share("--keep-params", self.share)


@dataclass(frozen=True, slots=True)
class KeepBytes:
    """The share of the bytes in which the eligible sites' parameters are stored, least total damage (``--keep-bytes``).

    It differs from `KeepParams` where weights of several types are stored: a float32 costs twice as much as a float16.
    """

    share: float

    def __post_init__(self) -> None:
        _check_share("--keep-bytes", self.share)


@dataclass(frozen=True, slots=True)
class KeepMacs:
    """The share of the eligible sites' multiply-accumulates to keep, least total damage (``--keep-macs``)."""

    share: float

    def __post_init__(self) -> None:
        _check_share("--keep-macs", self.share)


@dataclass(frozen=True, slots=True)
class MaxError:
    """The largest relative L2 error of the model's outputs on the feeds, met by search (``--max-error``)."""

    error: float

    def __post_init__(self) -> None:
        if not 0.0 < self.error < 1.0:
            raise UsageError(f"--max-error {self.error:g}: expected a relative error between 0 and 1, e.g. 0.05")


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """How much worse the task metric may become, in its own unit, met by search (``--max-drop`` with ``--metric``).

    Where the metric tells samples apart, the limit holds for what the drop can be at 95 % confidence on data drawn like
    them, not just for what was counted.
    """

    drop: float

    def __post_init__(self) -> None:
        _check_drop(self.drop)


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as the original the whole model is to be, as measured here (``--speedup``)."""

    speedup: float

    def __post_init__(self) -> None:
        if not 1.0 < self.speedup < float("inf"):
            raise UsageError(f"--speedup {self.speedup:g}: expected a factor above 1, e.g. --speedup 1.5")


Budget: TypeAlias = FixedRank | Alpha | Energy | KeepParams | KeepBytes | KeepMacs | MaxError | MaxDrop | Speedup

PlannedBudget: TypeAlias = KeepParams | KeepBytes | KeepMacs | MaxError | MaxDrop | Speedup
"""The budgets over the whole model, for which the weights compete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Conditions on the validated outputs; a result that breaks one is not written."""

    min_sqnr_db: float | None = None
    max_error: float | None = None
    min_top1: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.min_sqnr_db is not None and self.min_sqnr_db != self.min_sqnr_db:
            raise UsageError("--min-sqnr nan: expected a number of dB, e.g. --min-sqnr 30")
        if self.max_error is not None and not self.max_error > 0.0:
            raise UsageError(f"--max-error {self.max_error:g}: expected a relative error above 0, e.g. 0.05")
        if self.min_top1 is not None and not 0.0 <= self.min_top1 <= 1.0:
            raise UsageError(f"--min-top1 {self.min_top1:g}: expected a share from 0 to 1, e.g. 0.99")
        if self.max_drop is not None:
            _check_drop(self.max_drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How to compress a model. Every field is a flag of ``lowrank-onnx compress`` of the same name.

    Parameters
    ----------
    budget : exactly one of `FixedRank`, `Alpha`, `Energy`, `KeepParams`, `KeepBytes`, `KeepMacs`,
        `MaxError`, `MaxDrop`, `Speedup`.
    objective : "latency" plans by the time that each weight takes here, and refuses a result that isn't measurably
        faster than the original; "size" does neither.
    method : "auto" (the cheapest solver that comes within 2 % of the optimal spectral error, exact where that is as
        cheap), "rsi" (randomized subspace iteration as published, arXiv 2604.02659), "rsvd" (the same with q = 1) or
        "svd" (exact).
    power_iterations : the paper's q; q = 1 is RSVD and equals scikit-learn's ``n_iter`` + 1.
    oversampling : columns of the sketch beyond the rank; 0 is the algorithm exactly as published.
    seed : of the sketches, the synthetic feeds and the bootstrap.
    include, exclude : globs on node and weight names; empty `include` means all.
    op_types : the operators to compress.
    forms : the forms that weights may be written in. Budgets over the whole model choose among all of those that a
        weight's operator has; those that name a rank take the plain form, the first of them.
    overrides : rank, form, exclusion or sensitivity of single weights, by pattern. Later ones win, option by option;
        `exclude` wins over all of them.
    fix_overridable : also compress weights that are graph inputs with a default value, which a run could override (old
        exporters list every initializer so). The compressed model has no such input any more.
    whiten : with real feeds, minimise the error of what each site computes on them, not that of its weight.
    effort : how much time to take for how much quality: sets `sensitivity` (fast: off, default: fast, full: full)
        unless that is given, how finely a search looks, and how long is timed; see `lowrank_onnx.effort`.
    sensitivity : with real feeds and a budget over the whole model, measure what compressing each weight alone does to
        the outputs: "fast" at one rank, "full" at up to three, "off" not at all; None: what the effort says.
    refine : with real feeds, solve the factors again, layer after layer, so that each makes good what the ones before
        it got wrong; kept only as far as it lowers the error of the outputs on feeds that it did not see. None: what
        the effort says.
    rank_multiple : planned ranks are multiples of it; None takes 16 where the matrices are large enough for it.
    allow_larger : with `FixedRank` or `Alpha`, also write factors that are not smaller than the weight; ``Alpha(1.0)``
        then rewrites exactly, which shows what the rewriting alone does on a runtime.
    device : where to factorize.
    provider : the onnxruntime execution provider that validates and times.
    provider_options : pairs of a name and a value that onnxruntime hands to the provider.
    one_session : True has one model in memory at a time, False two; None: one where two wouldn't fit. One at a time,
        the models take turns: the outputs are the same, but speed is measured in blocks of runs.
    logits : globs on names of outputs that are logits: scores that only ever meet a softmax outside of the model. Their
        errors are measured, planned by and judged without each row's mean, which a softmax ignores.
    validate : False skips validation, and the report says so.
    gates : conditions on the outputs.
    metric : the user's own measure of a model, of which original and result are reported; `MaxDrop` needs it.
    """

    budget: Budget = MaxError(0.05)
    objective: Objective = "latency"
    method: Method = "auto"
    power_iterations: int = 4
    oversampling: int = 10
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op_types: tuple[str, ...] = OP_TYPES
    forms: tuple[str, ...] = FORM_NAMES
    overrides: tuple[SiteOverride, ...] = ()
    fix_overridable: bool = False
    whiten: bool = True
    effort: EffortLevel = "default"
    sensitivity: SensitivityLevel | None = None
    refine: bool | None = None
    rank_multiple: int | None = None
    allow_larger: bool = False
    device: Device = "auto"
    provider: str = "CPUExecutionProvider"
    provider_options: ProviderOptions = ()
    one_session: bool | None = None
    logits: tuple[str, ...] = ()
    validate: bool = True
    gates: Gates = field(default_factory=Gates)
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.power_iterations < 1:
            raise UsageError(f"--power-iterations {self.power_iterations}: expected at least 1 (1 is RSVD)")
        if self.oversampling < 0:
            raise UsageError(f"--oversampling {self.oversampling}: expected 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: expected a whole number from 0 to 2**63 - 1")
        if self.rank_multiple is not None and self.rank_multiple < 1:
            raise UsageError(f"--rank-multiple {self.rank_multiple}: expected at least 1, e.g. 16")
        self._check_forms()
        check_provider_options(self.provider_options)
        unknown = sorted(set(self.op_types) - set(OP_TYPES))
        if unknown:
            raise UsageError(f"--op-types {','.join(unknown)}: expected some of {', '.join(OP_TYPES)}")
        if not self.op_types:
            raise UsageError(f"--op-types: expected at least one of {', '.join(OP_TYPES)}")
        if self.allow_larger and not isinstance(self.budget, FixedRank | Alpha):
            raise UsageError("--allow-larger goes with --rank or --alpha: other budgets never make a weight larger")
        if self.required_drop is not None and self.metric is None:
            raise UsageError(
                f"--max-drop {self.required_drop:g} is about a metric: give --metric FILE.py:FUNCTION, or --max-error"
            )
        self._check_validation()

    def _check_forms(self) -> None:
        unknown = sorted(set(self.forms) - set(FORM_NAMES))
        if unknown or not self.forms:
            raise UsageError(f"--forms {','.join(unknown)}: expected some of {', '.join(FORM_NAMES)}")

    @property
    def runs_on(self) -> Provider:
        """The provider with its options."""
        return Provider(self.provider, self.provider_options)

    @property
    def preset(self) -> Effort:
        """What the effort means, with what was given besides."""
        preset = EFFORTS[self.effort]
        return replace(
            preset,
            sensitivity=preset.sensitivity if self.sensitivity is None else self.sensitivity,
            refine=preset.refine if self.refine is None else self.refine,
        )

    @property
    def required_drop(self) -> float | None:
        """The largest drop of the metric that is accepted, as budget or gate; None where nothing was asked."""
        return self.budget.drop if isinstance(self.budget, MaxDrop) else self.gates.max_drop

    def _check_validation(self) -> None:
        """Refuse what can't be judged without running the model."""
        if isinstance(self.budget, Speedup) and self.objective == "size":
            raise UsageError("--speedup goes with --objective latency: drop --objective size")
        if self.validate:
            return
        for budget, flag in ((MaxError, "--max-error"), (MaxDrop, "--max-drop"), (Speedup, "--speedup")):
            if isinstance(self.budget, budget):
                raise UsageError(f"{flag} needs validation: drop --no-validate, or give a budget such as --keep-params")
        if self.gates != Gates():
            raise UsageError("a gate needs validation: drop --no-validate, or --min-sqnr, --max-error and --min-top1")
        if self.metric is not None:
            raise UsageError("--metric needs validation: drop --no-validate, or --metric")
