"""What a candidate costs, in the figure that a budget limits: whole numbers, so that sums are exact."""

from __future__ import annotations

from typing import Literal

from lowrank_onnx.candidates import Candidate, PlannedWeight, dense_candidate
from lowrank_onnx.forms import Form

CostName = Literal["parameters", "bytes", "macs", "latency"]


def figure(candidate: Candidate, cost: CostName) -> int:
    """Parameters, bytes, MACs or nanoseconds of a candidate: whole numbers, so that sums are exact."""
    if cost == "parameters":
        return candidate.parameters
    if cost == "bytes":
        return candidate.stored_bytes
    if cost == "latency":
        if candidate.latency_ms is None:
            raise ValueError("the latency of this candidate is not known")
        return _nanoseconds(candidate.latency_ms)
    if candidate.macs is None:
        raise ValueError("the MACs of this candidate are not known")
    return candidate.macs


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def dense_figure(weight: PlannedWeight, cost: CostName) -> int | None:
    """What `figure` is for the dense weight; None where it is not known."""
    dense = dense_candidate(weight)
    if (cost == "macs" and dense.macs is None) or (cost == "latency" and dense.latency_ms is None):
        return None
    return figure(dense, cost)


def figure_at(weight: PlannedWeight, form: Form, rank: int, cost: CostName) -> int:
    """What `figure` is in a form at a rank, where it is known for the dense weight."""
    if cost == "latency" and weight.latency is not None:
        return _nanoseconds(weight.latency(form.name, rank))
    if cost == "macs" and (macs := weight.macs(form, rank)) is not None:
        return macs
    return form.parameters(weight.shape, rank) * (weight.itemsize if cost == "bytes" else 1)
