"""Outputs that aren't plain tensors: how sequences, maps and optionals are built, and the arrays that they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_onnx.types import Array

ARRAY = "*"
"""The structure of a plain tensor."""


def flatten(value: Any) -> tuple[str, list[Array]]:
    """The structure of an output as text, and its arrays in a fixed order."""
    if value is None:
        return "none", []
    if isinstance(value, dict):
        keys = sorted(value, key=repr)
        values = [value[key] for key in keys]
        if all(np.ndim(entry) == 0 for entry in values):
            return "{" + ",".join(map(repr, keys)) + "}", [np.asarray(values)]
        parts = [flatten(entry) for entry in values]
        text = "{" + ",".join(f"{key!r}:{part[0]}" for key, part in zip(keys, parts, strict=True)) + "}"
        return text, [array for part in parts for array in part[1]]
    if isinstance(value, (list, tuple)):
        parts = [flatten(entry) for entry in value]
        return "[" + ",".join(part[0] for part in parts) + "]", [array for part in parts for array in part[1]]
    return ARRAY, [np.asarray(value)]


def brief(structure: str) -> str:
    """A structure in words, or cut to what fits a line."""
    names = {ARRAY: "a tensor", "none": "nothing"}
    return names.get(structure, structure if len(structure) <= 60 else f"{structure[:60]}...")
