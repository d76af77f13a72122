"""The factors solved again, in the order in which the model runs, on what the compressed model really computes."""

from lowrank_onnx.refine.outcome import Outcome
from lowrank_onnx.refine.stage import Refined, refine_factors

__all__ = ["Outcome", "Refined", "refine_factors"]
