"""Latency of single sites as measured on this machine, dense and at ranks, remembered on disk."""

from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.table import LatencyTable, Unmeasured

__all__ = ["LatencyCurve", "LatencyTable", "Unmeasured"]
