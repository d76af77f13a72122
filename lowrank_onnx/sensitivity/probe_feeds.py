"""How many feeds the effect of a single weight is measured on."""

from __future__ import annotations

import math

from lowrank_onnx.effort import SensitivityLevel

FEEDS_TO_PROBE = {"fast": (2, 16), "full": (8, 32)}
"""Feeds on which each probe is run: the fewest, and the most (their outputs are kept in memory)."""

SAMPLES_TO_PROBE = {"fast": 32, "full": 256}
"""Samples that are enough where fewer than the fewest feeds hold them. 32 leave the shipped models, at 0.8 to 0.4 of
their MACs, about the error that 64 leave: the ViT 0.99 times as much (22 plans, 0.79 to 1.43, the scatter of what a
plan finds by chance), the VGG 1.01 times (26 plans, 0.84 to 1.29)."""

PASSES_TO_PROBE = {"fast": 1.5, "full": 24.0}
"""Passes over all feeds that the probes may take together, where that allows more than the fewest feeds."""


def feeds_to_probe(level: SensitivityLevel, probes: int, feeds: int, samples: int) -> int:
    """How many of the feeds to run each probe on: a model of few weights can afford more of them, for less noise."""
    fewest, most = FEEDS_TO_PROBE[level]
    enough = min(fewest, math.ceil(SAMPLES_TO_PROBE[level] * feeds / max(1, samples)))
    return min(feeds, max(enough, min(most, int(PASSES_TO_PROBE[level] * feeds / probes))))
