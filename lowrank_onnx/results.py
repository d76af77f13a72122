"""What the pipeline hands back: plain frozen data, from which every report is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lowrank_onnx.config import Config
from lowrank_onnx.types import Skipped, Verdict

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of one site.

    Attributes
    ----------
    name, op_type, weight, dtype : the node, and the tensor that holds its weight.
    groups, in_features, out_features : the matrices of the weight (1 group unless it is a grouped convolution).
    form : how the factors were written ("pair", "conv_channel", ...), or "dense" where the site was left alone.
    rank : of the factors; None when dense.
    reason : why the site is dense; "" when it was rewritten.
    parameters_before, parameters_after : stored weights of the site, biases left out.
    macs_before, macs_after : multiply-accumulates of one run on one feed; None when no run was observed.
    relative_error : ||W - L R||_F / ||W||_F, measured; None when dense.
    spectral_error : estimate of ||W - L R||_2 / ||W||_2; None when dense.
    solver : what factorized the weight, e.g. "rsi(q=4, p=10)"; "" when dense.
    input_error : ||X (W - L R)||_F / ||X W||_F for inputs X like those that the feeds showed, as the factorization sees
        them; None when dense or not whitened.
    importance : measured relative squared error of the model's outputs per relative squared tail energy of this weight;
        None where it was not measured.
    predicted_error : the relative error of the outputs that is expected of this weight alone at its rank; None when
        dense or not measured.
    error_curve : (rank, relative error) at some ranks, rising: of what the site computes on the feeds where whitened,
        else of the weight; empty where it was not factorized.
    probes : (rank, relative error of the outputs with this weight alone at that rank) as measured, the most telling
        rank first; empty where it was not measured.
    exclude : why the site should be excluded; "" where it need not be.
    note : what the feeds could not teach about the weight, and what would help; "" where nothing is amiss.
    """

    name: str
    op_type: str
    weight: str
    dtype: str
    groups: int
    in_features: int
    out_features: int
    form: str
    rank: int | None
    reason: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None
    macs_after: int | None
    relative_error: float | None
    spectral_error: float | None
    solver: str
    input_error: float | None = None
    importance: float | None = None
    predicted_error: float | None = None
    probes: tuple[tuple[int, float], ...] = ()
    exclude: str = ""
    error_curve: tuple[tuple[int, float], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of a whole model, before or after.

    Attributes
    ----------
    parameters : elements of all floating-point initializers of the model.
    site_parameters : weights stored for the eligible sites; a shared weight counts once.
    macs : multiply-accumulates of all eligible sites in one run on one feed; None when no run was observed.
    file_bytes : bytes of the model file and of its external data.
    """

    parameters: int
    site_parameters: int
    macs: int | None
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Reached:
    """One figure of the result.

    Attributes
    ----------
    figure : what it is.
    asked : as budget or gate; None where nothing was asked of it.
    predicted : by the plan, before the model was made; None where the plan says nothing of it.
    reached : as counted or measured.
    """

    figure: str
    asked: float | None
    predicted: float | None
    reached: float


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One attempt of the search for ``--max-error``, ``--max-drop`` or ``--speedup``.

    Attributes
    ----------
    keep : share of the eligible sites' latency that was tried; of their MACs where no latency is known, of their
        parameters where size is the objective or no MACs are known either.
    error : relative L2 error of the model's outputs that came of it.
    accepted : whether the error or the drop was within the limit, or the model fast enough.
    speedup : of the whole model over the original, measured; None in any other search.
    drop : of the task metric, as measured; None in any other search.
    judged_drop : what was held against the limit: what the drop can be at 95 % confidence where the metric tells
        samples apart, else the drop itself.
    """

    keep: float
    error: float
    accepted: bool
    speedup: float | None = None
    drop: float | None = None
    judged_drop: float | None = None


@dataclass(frozen=True, slots=True)
class PlanTrial:
    """One way to add up damage, and what the model was like that it led to.

    Attributes
    ----------
    keep : share of the cost that was planned for.
    trust : the plan added up measured^trust x tail^(1 - trust): effects measured one weight at a time, tail energies.
    error : relative L2 error of the outputs of the whole model, on calibration feeds; None where it was not measured.
    chosen : whether this plan was taken at this share.
    """

    keep: float
    trust: float
    error: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class RefinedWeight:
    """What solving its factors again did to one weight.

    Attributes
    ----------
    weight : name of its tensor.
    refined : whether new factors were written.
    reason : why not, or "".
    target : "output" (what the site computes in the original), or "sum" (the sum that it writes into).
    pull : how hard the factors were pulled towards the original weight, in units of the mean square of the inputs; None
        where they were not solved.
    error_before, error_after : relative error of the target on feeds that were not solved for; None where not measured.
    rows : inputs that were solved for.
    """

    weight: str
    refined: bool
    reason: str
    target: Literal["output", "sum"]
    pull: float | None
    error_before: float | None
    error_after: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class Refinement:
    """What solving all factors again on the compressed model's own inputs did.

    Attributes
    ----------
    feeds : calibration feeds that were used.
    held_out : how many of them were not solved for, but decided what stays.
    error_before, error_after : relative error of the model's outputs on the held-out ones, with factors as planned and
        with refined ones, both made from the other feeds alone; None where nothing was solved.
    weights : every weight that was replaced by factors.
    note : why nothing was refined, or what was given up; "" where nothing is amiss.
    """

    feeds: int
    held_out: int
    error_before: float | None
    error_after: float | None
    weights: tuple[RefinedWeight, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class CompressionResult:
    """The outcome of `lowrank_onnx.compress`.

    Attributes
    ----------
    status : "written" (also when only a model object was asked for and it passed), "rejected" (validation failed, or
        the result is not faster), or "unchanged" (no site was rewritten; the model is left as it is).
    output : the path that was written, or None.
    input : the path that was read, or a name for a model given as an object.
    config : the options.
    sites, skipped : every eligible site, and every node that was looked at and left alone.
    before, after : figures of the whole model; `after` is None when nothing was rewritten.
    verdict : None without validation, or when nothing was rewritten.
    search : the attempts of ``--max-error``, ``--max-drop`` or ``--speedup``, in order; empty with any other budget.
    trials : the plans that were tried at each share, where effects were measured; empty otherwise.
    message : the outcome in one sentence.
    seconds : wall time of each stage.
    versions : of this package, its libraries, Python and the platform; "" for what is not installed.
    model : the new model where no output path was given, complete in memory; else None. Not part of any report.
    feeds : describes the feeds behind MACs, outputs and latency; "" when nothing was run.
    synthetic : whether those feeds were made up from the model's signature.
    already_compressed : whether the input holds factors that an earlier run wrote; "unchanged" is then a success.
    reached : what was asked beside what was predicted and what came of it; empty where nothing was rewritten.
    pass_seconds : of one pass of the original over the calibration feeds, the unit in which the time of the stages
        doesn't depend on the model; None where it was not timed.
    notes : sentences on what a user should know of the run itself, e.g. a damaged entry of the cache.
    refinement : None where it was not asked for or there were no real feeds.
    """

    status: Literal["written", "rejected", "unchanged"]
    output: str | None
    input: str
    config: Config
    sites: tuple[SiteResult, ...]
    skipped: tuple[Skipped, ...]
    before: Totals
    after: Totals | None
    verdict: Verdict | None
    search: tuple[SearchStep, ...]
    message: str
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    model: onnx.ModelProto | None = field(default=None, repr=False, compare=False)
    feeds: str = ""
    synthetic: bool = False
    already_compressed: bool = False
    reached: tuple[Reached, ...] = ()
    pass_seconds: float | None = None
    notes: tuple[str, ...] = ()
    trials: tuple[PlanTrial, ...] = ()
    refinement: Refinement | None = None


@dataclass(frozen=True, slots=True)
class InspectedSite:
    """One eligible site as `lowrank_onnx.inspect` sees it.

    Attributes
    ----------
    macs : multiply-accumulates of one run on one feed; None when no run was observed.
    break_even_rank : the largest rank at which the factors hold fewer weights than the dense matrices.
    stable_rank : ||W||_F^2 / ||W||_2^2, of the group where it is largest; low means compressible.
    energy_ranks : (share, rank) pairs: the smallest rank that keeps that share of ||W||_F^2; the rank is None where
        it lies beyond the part of the spectrum that was computed.
    """

    name: str
    op_type: str
    weight: str
    dtype: str
    groups: int
    in_features: int
    out_features: int
    parameters: int
    macs: int | None
    break_even_rank: int
    stable_rank: float
    energy_ranks: tuple[tuple[float, int | None], ...]


@dataclass(frozen=True, slots=True)
class InspectResult:
    """What `lowrank_onnx.inspect` found: the eligible sites, what was skipped and why, and the model's figures.

    `notes` are sentences that a reader of the figures needs, e.g. that MACs come from a synthetic feed.
    """

    input: str
    sites: tuple[InspectedSite, ...]
    skipped: tuple[Skipped, ...]
    totals: Totals
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoRow:
    """What the demo did to one shipped model.

    Attributes
    ----------
    model : the file's stem.
    images : labelled test images behind the accuracies; none of them is a calibration image.
    accuracy_before, accuracy_after : top-1, from 0 to 1; `accuracy_after` is None when no file was written.
    batch : images in one timed run.
    result : of the compression.
    """

    model: str
    images: int
    accuracy_before: float
    accuracy_after: float | None
    batch: int
    result: CompressionResult


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One budget of a sweep: what came of it, and whether no other point is better in every figure."""

    result: CompressionResult
    on_front: bool


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcome of `lowrank_onnx.sweep`.

    Attributes
    ----------
    input : the path that was read, or a name for a model given as an object.
    points : one for each budget, in the order given.
    picked : index of the point that was written, or None.
    output : where it was written, or None.
    message : the outcome in one sentence.
    """

    input: str
    points: tuple[SweepPoint, ...]
    picked: int | None
    output: str | None
    message: str
