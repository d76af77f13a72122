"""A checker of as much of JSON Schema (draft 2020-12) as docs/report-schema.json uses; it refuses any other keyword."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_ANNOTATIONS = {"$schema", "title", "$defs"}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> list[str]:
    """Where and how `value` breaks `schema`; empty if it doesn't."""
    found: list[str] = []
    for keyword, rule in schema.items():
        if keyword not in _ANNOTATIONS:
            found += _CHECKS[keyword](value, rule, schema, root, where)
    return found


def _type(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    fits = isinstance(value, _TYPES[rule]) and (rule == "boolean" or not isinstance(value, bool))
    return [] if fits else [f"{where}: no {rule}"]


def _const(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    return [] if value == rule else [f"{where}: not {rule!r}"]


def _enum(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    return [] if value in rule else [f"{where}: none of {rule!r}"]


def _ref(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    return problems(value, root["$defs"][rule.removeprefix("#/$defs/")], root, where)


def _any_of(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    each = [problems(value, option, root, where) for option in rule]
    return [] if any(not found for found in each) else [f"{where}: fits no option", *min(each, key=len)]


def _one_of(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    each = [problems(value, option, root, where) for option in rule]
    fitting = sum(not found for found in each)
    return [] if fitting == 1 else [f"{where}: fits {fitting} options", *min(each, key=len)]


def _properties(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    present = [name for name in rule if name in value]
    return [line for name in present for line in problems(value[name], rule[name], root, f"{where}.{name}")]


def _required(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    return [f"{where}.{name}: missing" for name in rule if isinstance(value, dict) and name not in value]


def _additional(value: Any, rule: Any, schema: Any, root: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    others = [name for name in value if name not in schema.get("properties", {})]
    if rule is False:
        return [f"{where}.{name}: not expected" for name in others]
    return [line for name in others for line in problems(value[name], rule, root, f"{where}.{name}")]


def _items(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    elements = value if isinstance(value, list) else []
    return [line for i, item in enumerate(elements) for line in problems(item, rule, root, f"{where}[{i}]")]


def _prefix_items(value: Any, rule: Any, _schema: Any, root: Any, where: str) -> list[str]:
    pairs = zip(value, rule, strict=False) if isinstance(value, list) else ()
    return [line for i, (item, r) in enumerate(pairs) for line in problems(item, r, root, f"{where}[{i}]")]


def _min_items(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    return [f"{where}: too short"] if isinstance(value, list) and len(value) < rule else []


def _max_items(value: Any, rule: Any, _schema: Any, _root: Any, where: str) -> list[str]:
    return [f"{where}: too long"] if isinstance(value, list) and len(value) > rule else []


_CHECKS = {
    "type": _type,
    "const": _const,
    "enum": _enum,
    "$ref": _ref,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _additional,
    "items": _items,
    "prefixItems": _prefix_items,
    "minItems": _min_items,
    "maxItems": _max_items,
}
