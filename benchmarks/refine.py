"""What solving the factors again brings, at what cost, with how many feeds: ``python -m benchmarks.refine``.

For each model and share of MACs kept: the outputs' relative error and the model's figures of merit on samples that
calibration did not see, for plain SVD, whitened factors with energy ranks, the planner's, and the planner's refined.
Beside that the curve over the number of calibration feeds, and what the stage costs in time and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.planning import RESULTS, SEED, Judge, today
from benchmarks.planning_cases import Case, Feeds, load_case
from benchmarks.planning_variants import VARIANTS, Variant, Workbench
from benchmarks.refine_report import markdown
from lowrank_onnx.accounting import versions
from lowrank_onnx.config import Config
from lowrank_onnx.latency.machine import machine_key
from lowrank_onnx.preparation import factorize_options

MODELS = ("vgg", "vit", "minilm")
SHARES = (0.6, 0.45, 0.33)
FEWER = (8, 32, 128, 512)
"""Calibration feeds of one sample each, a quarter of which the planner's and the refined model never see."""

CURVE_SHARE = 0.45
REFINED = "refined"
WAYS = ("plain SVD", "whitened, energy ranks", "planner, fast")


@dataclass(frozen=True, slots=True)
class Point:
    """One way at one share and number of feeds."""

    way: str
    share: float
    feeds: int
    error: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the stage took at one share: processor seconds, which other work disturbs less than wall time.

    `pass_seconds` is one pass of the original over the feeds that the stage learns from; `walk_passes` counts both
    models' runs, the equations and the checks in such passes, without the factorizations.
    """

    share: float
    feeds: int
    seconds: float
    pass_seconds: float
    factorizations: float
    peak_megabytes: float
    error_before: float | None
    error_after: float | None
    refined: int
    weights: int


@dataclass(slots=True)
class ModelResult:
    """Everything about one model."""

    model: str
    data: str
    date: str
    machine: str
    versions: Mapping[str, str]
    metrics: Mapping[str, float]
    points: list[Point] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
