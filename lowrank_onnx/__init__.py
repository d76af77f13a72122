"""Low-rank compression of exported ONNX models, with proof.

``compress`` reads a model, factorizes the weights of MatMul, Gemm and Conv nodes, rewrites the nodes, and shows in
onnxruntime what that did to outputs and latency. Names are imported on first use, so that importing the package is
cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_onnx.config import (
        Alpha,
        Config,
        Energy,
        FixedRank,
        Gates,
        KeepBytes,
        KeepMacs,
        KeepParams,
        MaxDrop,
        MaxError,
        Speedup,
    )
    from lowrank_onnx.errors import (
        FactorizationError,
        LowRankError,
        MissingDependencyError,
        ModelError,
        OutputError,
        UsageError,
    )
    from lowrank_onnx.linalg import factor
    from lowrank_onnx.metric import Metric
    from lowrank_onnx.pipeline import compress, inspect, validate
    from lowrank_onnx.results import CompressionResult, InspectResult, SweepResult
    from lowrank_onnx.site_override import SiteOverride
    from lowrank_onnx.types import Verdict

__version__ = "0.1.0"

_HOMES = {
    "lowrank_onnx.config": (
        "Alpha",
        "Config",
        "Energy",
        "FixedRank",
        "Gates",
        "KeepBytes",
        "KeepMacs",
        "KeepParams",
        "MaxDrop",
        "MaxError",
        "Speedup",
    ),
    "lowrank_onnx.errors": (
        "FactorizationError",
        "LowRankError",
        "MissingDependencyError",
        "ModelError",
        "OutputError",
        "UsageError",
    ),
    "lowrank_onnx.linalg": ("factor",),
    "lowrank_onnx.metric": ("Metric",),
    "lowrank_onnx.pipeline": ("compress", "inspect", "validate"),
    "lowrank_onnx.results": ("CompressionResult", "InspectResult", "SweepResult"),
    "lowrank_onnx.site_override": ("SiteOverride",),
    "lowrank_onnx.types": ("Verdict",),
}

__all__ = [
    "Alpha",
    "CompressionResult",
    "Config",
    "Energy",
    "FactorizationError",
    "FixedRank",
    "Gates",
    "InspectResult",
    "KeepBytes",
    "KeepMacs",
    "KeepParams",
    "LowRankError",
    "MaxDrop",
    "MaxError",
    "Metric",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "SiteOverride",
    "Speedup",
    "SweepResult",
    "UsageError",
    "Verdict",
    "__version__",
    "compress",
    "factor",
    "inspect",
    "validate",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'lowrank_onnx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
