"""What `lowrank_onnx.inspect` hands back."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_onnx.site_result import Totals
from lowrank_onnx.types import Skipped


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
    overridden : what the user asked of this weight and by which pattern; "" where nothing was.
    budget_ranks : (share, rank) pairs: the rank that each of the result's plans would take here; None where it would
        leave the weight dense.
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
    overridden: str = ""
    budget_ranks: tuple[tuple[float, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class InspectedPlan:
    """What a budget over the whole model would take, by the spectra alone and in the plain forms.

    Attributes
    ----------
    flag, share : the budget.
    rewritten : weights that would get factors.
    parameters, macs : of the eligible weights then; `macs` is None where they are not known.
    error : root mean square, over the rewritten weights, of ||W - W_r||_F / ||W||_F.
    noise_error : the same of random matrices of their shapes at their ranks.
    """

    flag: str
    share: float
    rewritten: int
    parameters: int
    macs: int | None
    error: float
    noise_error: float


@dataclass(frozen=True, slots=True)
class InspectResult:
    """What `lowrank_onnx.inspect` found: the eligible sites, what was skipped and why, and the model's figures.

    `notes` are sentences that a reader of the figures needs, e.g. that MACs come from a synthetic feed. `plans` are
    what budgets would take, by rising compression; `message` says whether there is anything to gain.
    """

    input: str
    sites: tuple[InspectedSite, ...]
    skipped: tuple[Skipped, ...]
    totals: Totals
    notes: tuple[str, ...]
    plans: tuple[InspectedPlan, ...] = ()
    message: str = ""
