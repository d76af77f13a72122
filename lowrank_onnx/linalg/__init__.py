"""Low-rank factorization of one matrix: numerics only, usable alone.

``factor(W, rank)`` gives balanced factors ``W ~ left @ right`` with their measured errors. Nothing here knows ONNX.
"""

from lowrank_onnx.linalg.factor import Method, factor
from lowrank_onnx.linalg.factorization import Factorization

__all__ = ["Factorization", "Method", "factor"]
