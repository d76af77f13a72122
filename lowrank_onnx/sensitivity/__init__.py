"""What compressing one weight alone does to the outputs of the model, measured."""

from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured, fit_importance, interpolate_error
from lowrank_onnx.sensitivity.measure import count_runs, measure_sensitivity

__all__ = [
    "Sensitivity",
    "Unmeasured",
    "count_runs",
    "fit_importance",
    "interpolate_error",
    "measure_sensitivity",
]
