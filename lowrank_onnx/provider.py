"""An onnxruntime execution provider and its options, as the command line and configuration files give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lowrank_onnx.errors import UsageError

ProviderOptions: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of a name and a value, in the order given."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What runs a model: a provider's name, in onnxruntime's words or short ("cuda"), and its options."""

    name: str = "CPUExecutionProvider"
    options: ProviderOptions = ()


def parse_provider_options(texts: Sequence[str]) -> ProviderOptions:
    """Read several ``NAME=VALUE`` (`UsageError` where one is not of that kind)."""
    found = []
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UsageError(f"--provider-option {text}: expected NAME=VALUE, e.g. --provider-option device_id=1")
        found.append((name, value))
    return tuple(found)


def provider_option_texts(table: Mapping[str, Any]) -> list[str]:
    """The ``NAME=VALUE`` of a table (`UsageError` where a value is neither text, a number, true nor false)."""
    for name, value in table.items():
        if not isinstance(value, str | int | float):
            raise UsageError(f"provider-option: {name} is a {type(value).__name__}: expected a string or a number")
    return [f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in table.items()]


def check_provider_options(options: ProviderOptions) -> None:
    """Refuse a name that is given twice (`UsageError`)."""
    names = [name for name, _ in options]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--provider-option {twice}: is given {names.count(twice)} times: drop all but one")
