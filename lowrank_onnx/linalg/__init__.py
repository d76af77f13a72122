"""Low-rank factorization of one matrix: numerics only, usable alone.

``factor(W, rank)`` gives balanced factors ``W ~ left @ right`` with their measured errors. Nothing here knows ONNX.
"""

from lowrank_onnx.linalg.batch import factor_each
from lowrank_onnx.linalg.certificate import (
    ClassifierCertificate,
    SpectralCertificate,
    certify_classifier,
    certify_spectral,
)
from lowrank_onnx.linalg.factor import factor
from lowrank_onnx.linalg.factorization import Factorization
from lowrank_onnx.linalg.precision import narrow_factors
from lowrank_onnx.linalg.rank import RankTarget
from lowrank_onnx.linalg.request import FactorRequest
from lowrank_onnx.linalg.solve import Method, SolverOptions

__all__ = [
    "ClassifierCertificate",
    "FactorRequest",
    "Factorization",
    "Method",
    "RankTarget",
    "SolverOptions",
    "SpectralCertificate",
    "certify_classifier",
    "certify_spectral",
    "factor",
    "factor_each",
    "narrow_factors",
]
