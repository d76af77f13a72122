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
