"""How the cores are divided among runs that are under way at once."""

from __future__ import annotations

import os

from lowrank_onnx.evaluate.session import CPU
from lowrank_onnx.observed import Observed

AT_ONCE = 2
"""Runs side by side on the CPU, each on its part of the cores: on two the shipped ViT takes a fifth less time."""


def side_by_side(original: Observed) -> tuple[int, int | None]:
    """How many runs there are at once, and how many threads each has; None is onnxruntime's choice."""
    cores = os.cpu_count() or 1
    if original.sessions.one_at_a_time or original.session.providers_used != (CPU,) or cores < AT_ONCE:
        return 1, None
    return AT_ONCE, cores // AT_ONCE
