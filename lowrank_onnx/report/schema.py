"""The JSON Schema (draft 2020-12) of the JSON report, derived from the dataclasses that the report is made from."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from lowrank_onnx.config import Alpha, Energy, FixedRank, KeepBytes, KeepMacs, KeepParams, MaxDrop, MaxError, Speedup
from lowrank_onnx.report.json_report import SCHEMA, report_fields
from lowrank_onnx.results import CompressionResult, DemoRow, InspectResult, SweepResult
from lowrank_onnx.types import Verdict

_BUDGETS = (FixedRank, Alpha, Energy, KeepParams, KeepBytes, KeepMacs, MaxError, MaxDrop, Speedup)
_BUDGET_FLAGS = (
    "--rank",
    "--alpha",
    "--energy",
    "--keep-params",
    "--keep-bytes",
    "--keep-macs",
    "--max-error",
    "--max-drop",
    "--speedup",
)

Schema = dict[str, Any]


def report_schema() -> Schema:
    """The schema of all kinds of report."""
    definitions: Schema = {}
    kinds = [
        _kind("compress", _properties(CompressionResult, definitions)),
        _kind("inspect", _properties(InspectResult, definitions)),
        _kind("validate", {"original": _STRING, "candidate": _STRING, "verdict": _of(Verdict, definitions)}),
        _kind("sweep", _properties(SweepResult, definitions)),
        _kind("demo", {"rows": {"type": "array", "items": _of(DemoRow, definitions)}}),
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        "oneOf": kinds,
        "$defs": dict(sorted(definitions.items())),
    }


_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_SIMPLE: Mapping[Any, Schema] = {
    str: _STRING,
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: _NUMBER,
    type(None): {"type": "null"},
}


def _kind(kind: str, properties: Schema) -> Schema:
    return _object({"schema": {"const": SCHEMA}, "kind": {"const": kind}, **properties})


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _properties(kind: type, definitions: Schema) -> Schema:
    # `CompressionResult.model` is in no report, and its type isn't imported where it is annotated.
    hints = typing.get_type_hints(kind, localns={"onnx": types.SimpleNamespace(ModelProto=object)})
    return {name: _of(hints.get(name) or _returned(kind, name), definitions) for name in report_fields(kind)}


def _returned(kind: type, name: str) -> Any:
    return typing.get_type_hints(getattr(kind, name).fget)["return"]


def _of(hint: Any, definitions: Schema) -> Schema:
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _object(_properties(hint, definitions))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return {"enum": list(arguments)}
        case typing.Union | types.UnionType:
            return _union(arguments, definitions)
        case origin if origin is tuple:
            return _array(arguments, definitions)
        case origin if origin is Mapping:
            return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    raise TypeError(f"no schema for {hint!r}")


def _union(members: tuple[Any, ...], definitions: Schema) -> Schema:
    if set(members) == set(_BUDGETS):
        definitions["Budget"] = _object({"flag": {"enum": list(_BUDGET_FLAGS)}, "value": {"type": "number"}})
        return {"$ref": "#/$defs/Budget"}
    return {"anyOf": [_of(member, definitions) for member in members]}


def _array(members: tuple[Any, ...], definitions: Schema) -> Schema:
    if len(members) == 2 and members[1] is Ellipsis:
        return {"type": "array", "items": _of(members[0], definitions)}
    return {
        "type": "array",
        "prefixItems": [_of(member, definitions) for member in members],
        "minItems": len(members),
        "maxItems": len(members),
    }
