"""What the pipeline hands back: plain frozen data, from which every report is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lowrank_onnx.config import Config
from lowrank_onnx.inspect_result import InspectedPlan as InspectedPlan
from lowrank_onnx.inspect_result import InspectedSite as InspectedSite
from lowrank_onnx.inspect_result import InspectResult as InspectResult
from lowrank_onnx.site_result import SiteResult as SiteResult
from lowrank_onnx.site_result import Totals as Totals
from lowrank_onnx.types import Skipped, Verdict

if TYPE_CHECKING:
    import onnx


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
    error : relative L2 error of the outputs of the whole model, on calibration feeds: where they have few samples the
        geometric mean of these, each with factors made of the others. None where it was not measured.
    chosen : whether this plan was taken at this share.
    plain : whether it had only the plain form of each weight to choose from.
    """

    keep: float
    trust: float
    error: float | None
    chosen: bool
    plain: bool = False


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
    error_before, error_after : relative error of the target on feeds that validate, with the factors as planned and as
        solved on the others, each output counted by what the weights that sum over it make of it; None where not
        measured.
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
    held_out : how many other feeds decided what stays.
    error_before, error_after : relative error of the model's outputs on these, with factors as planned and with what
        stays of the refined ones; None where nothing was solved.
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
    pass_seconds : of one pass of the original over all feeds, the unit in which the time of the stages
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
