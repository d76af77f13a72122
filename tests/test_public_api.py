"""The public API as a snapshot: a change of a name or a signature is a decision, not an accident."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import lowrank_onnx

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def _describe(name: str) -> list[str]:
    thing = getattr(lowrank_onnx, name)
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return [f"{name}.{field.name}: {field.type}" for field in dataclasses.fields(thing)]
    if inspect.isclass(thing):
        return [f"{name}({', '.join(base.__name__ for base in thing.__bases__)})"]
    if callable(thing):
        parameters = inspect.signature(thing).parameters.values()
        return [f"{name}: {p.kind.description} {p.name}: {p.annotation}" for p in parameters]
    return [name]


def public_api() -> str:
    """One line a name, a parameter or a field."""
    return "".join(f"{line}\n" for name in sorted(lowrank_onnx.__all__) for line in _describe(name))


def test_the_public_api_is_the_one_that_was_agreed() -> None:
    """To renew it: python -m tests.test_public_api."""
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8")


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
